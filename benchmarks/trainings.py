"""Files and settings of the trainings that benchmarks run: FLYP on the fused labels of a run."""

from pathlib import Path
from typing import Any

from latteclip.clip.classifier import load_classifier
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.train.data import TrainingFiles
from latteclip.train.settings import Compute, Finetune, FinetuneSettings

AUTO = dict.fromkeys(("epochs", "warmup_steps", "batch_size", "lr"), "auto")
FIXED = {"steps_multiple_of": 1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.2}


def training_files(folder: Path) -> TrainingFiles:
    """Return the index and the labels in a folder of results."""
    return TrainingFiles(
        images=str(folder / "images.parquet"),
        pseudo_labels=str(folder / "pseudo_labels.parquet"),
        fused_labels=str(folder / "fused_labels.parquet"),
        fusion_report=str(folder / "fused_labels.json"),
    )


def flyp_settings(
    results: Path, template: str | None = None, fold: Fold = NO_FOLD, **finetune: Any
) -> FinetuneSettings:
    """Return settings for the CLIP of a run. Keys of `finetune` that are not given are "auto"."""
    _, described = load_classifier(str(results / "class_embeddings.safetensors"))
    return FinetuneSettings(
        model=described["model"],
        pretrained=described["pretrained"],
        template=template or described["template"],
        objective="flyp",
        finetune=Finetune(**{**AUTO, **FIXED, **finetune}, batch_norm="frozen"),
        pseudo_labels="fused",
        compute=Compute(cache_gib=4),
        fold=fold,
    )
