"""Which rule makes a file of `results/`: what a message on a damaged one says about the remedy."""

from pathlib import Path

EVALUATION = ("evaluate", "evaluate_zero_shot", "evaluate_classifier")
# The end of a path: the rules that may have made it. Longer ends come first.
MAKERS: dict[str, tuple[str, ...]] = {
    "captions/images.parquet": ("caption_images", "gather_captions"),
    "captions/groups.parquet": ("caption_groups", "gather_captions"),
    "captions/summary.json": ("summarize_captions",),
    "images.parquet": ("index_images",),
    "fingerprints.parquet": ("index_images",),
    "duplicates.parquet": ("find_duplicates",),
    "pseudo_labels.parquet": ("pseudo_label_images",),
    "class_embeddings.safetensors": ("pseudo_label_images",),
    "calibrated.safetensors": ("calibrate_zero_shot",),
    "image_prototypes_by_zero_shot.safetensors": ("calibrate_zero_shot",),
    "class_scores.parquet": ("score_classes", "gather_scores"),
    "caption_labels.parquet": ("label_by_captions",),
    "image_prototypes.safetensors": ("label_by_captions",),
    "votes.parquet": ("label_by_captions",),
    "unknown.parquet": ("score_unknown",),
    "unknown.safetensors": ("score_unknown",),
    "history.parquet": ("finetune",),
    "predictions.parquet": (*EVALUATION, "propagate_labels"),
    "metrics.json": (*EVALUATION, "propagate_labels"),
    "judged.parquet": EVALUATION,
    "audit.json": ("score_audit",),
    "gallery.parquet": ("evaluate", "evaluate_classifier"),
}


def remedy(path: str | Path) -> str:
    """What to do about a file that is damaged or of another kind."""
    parts = Path(path).parts
    for end, rules in MAKERS.items():
        wanted = Path(end).parts
        if parts[-len(wanted) :] == wanted:
            named = f"the rule {' or '.join(rules)} makes it again"
            return f"delete it and rerun the workflow: {named}"
    return "delete it and rerun its stage"
