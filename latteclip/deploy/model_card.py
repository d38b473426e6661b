"""The model card of an exported model: where it comes from, how well it does and how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import FinetunedModel
from latteclip.config import layers
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates, clean_classname
from latteclip.core.open_clip_import import open_clip
from latteclip.deploy.model_origin import run_of
from latteclip.evaluate.results import read_metrics

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
FIGURES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
}


def read_origin(model: Path) -> dict[str, Any]:
    """Read the files beside a model folder, or beside the run that it was chosen from.

    Returns:
        `dataset`, `metrics` (of metrics.json), `settings` (of the training, or of CLIP alone),
        `is_trained` (None where no file says), and the `reason` why it was chosen.
    """
    run, reason = run_of(model)
    metrics_file, history_file = run / "metrics.json", run / "history.parquet"
    embeddings = run.parents[1] / "class_embeddings.safetensors"
    metrics = read_metrics(metrics_file) if metrics_file.is_file() else {}
    settings, is_trained = {}, False if metrics else None
    if history_file.is_file():
        history = tables.read_metadata(history_file, "step")
        settings = history.get("settings", {})
        is_trained = "diverged" not in history.get("marks", [])
    elif metrics and embeddings.is_file():
        settings = load_classifier(embeddings)[1]
    origin = {"metrics": metrics, "settings": settings, "is_trained": is_trained, "reason": reason}
    return {**origin, "dataset": metrics.get("dataset", "custom")}


def model_card(
    opened: FinetunedModel, origin: Mapping[str, Any], form: str, licence: str | None
) -> ModelCard:
    """Return the model card: Markdown with the metadata that the hub reads."""
    metrics, dataset = origin["metrics"], origin["dataset"]
    described = layers.datasets().get(dataset, {})
    title = described.get("title", dataset)
    has_results = metrics.get("acc1") is not None
    results = [(name, metrics[key]) for key, name in FIGURES.items() if has_results]
    repo = _repo(origin["settings"])
    data = ModelCardData(
        library_name=form,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "latteclip"],
        license=licence or "other",
        license_name=None if licence else "that-of-the-base-model",
        base_model=repo,
        model_name=f"{metrics['method']}-{dataset}" if results else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset,
                dataset_name=title,
                dataset_split="test",
                metric_type="accuracy",
                metric_name=name,
                metric_value=value,
            )
            for name, value in results
        ]
        or None,
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        form=form,
        licence=licence,
        title=title,
        described=described,
        **origin,
        results=results,
        base=_base(origin["settings"], repo),
        eyes=len(opened.eyes_widths),
        templates=opened.words.templates,
        classes=[_class(name, opened.words) for name in opened.classnames],
    )
    return card


def _class(classname: str, words: ClassTemplates) -> str:
    """Return the name of a class, with its synonyms."""
    [name] = words.as_written([classname])
    others = words.synonyms.get(clean_classname(classname, {}))
    return f"{name} (also {', '.join(others)})" if others else name


def _repo(settings: Mapping[str, Any]) -> str | None:
    """Return the base model's repository on the hub, where open_clip knows it."""
    model, tag = str(settings.get("model", "")), settings.get("pretrained")
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    if not tag:
        return None
    known = open_clip.get_pretrained_cfg(model.replace("/", "-"), tag)
    return str(known.get("hf_hub", "")).strip("/") or None


def _base(settings: Mapping[str, Any], repo: str | None) -> str:
    """Return the base model as Markdown."""
    if not settings:
        return "not recorded"
    tag = settings.get("pretrained")
    name = settings["model"] + (f" with {tag}" if tag else "")
    return f"[{name}](https://huggingface.co/{repo})" if repo else f"`{name}`"
