"""The model card of an exported model: where it comes from, how well it does and how to use it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import FinetunedModel
from latteclip.config import layers
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates, clean_classname
from latteclip.core.open_clip_import import open_clip
from latteclip.deploy.abstention import run_of
from latteclip.evaluate.results import read_metrics

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
METRICS = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
}
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Provenance:
    """What the files beside a model say about it. Empty where they are missing."""

    dataset: str = "custom"
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of metrics.json
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the training, or of CLIP alone
    described: Mapping[str, Any] = field(default_factory=dict)  # the dataset's configuration
    is_trained: bool | None = None  # None where no file says
    reason: str = ""  # why `select_model` chose it


def provenance(model: Path) -> Provenance:
    """Read the files beside a model folder, or beside the run that it was chosen from.

    These are metrics.json, and history.parquet of a training or the class embeddings of the
    dataset.

    Raises:
        UserError: a file is broken.
    """
    run, reason = run_of(model)
    metrics_file, history_file = (run / name for name in ("metrics.json", "history.parquet"))
    embeddings = run.parents[1] / "class_embeddings.safetensors"
    metrics = read_metrics(metrics_file) if metrics_file.is_file() else {}
    settings: Mapping[str, Any] = {}
    is_trained = None
    if history_file.is_file():
        history = tables.read_metadata(history_file, "step")
        settings, is_trained = (
            history.get("settings", {}),
            "diverged" not in history.get("marks", []),
        )
    elif metrics:
        is_trained = False
        settings = load_classifier(embeddings)[1] if embeddings.is_file() else {}
    dataset = metrics.get("dataset", "custom")
    described = layers.datasets().get(dataset, {})
    return Provenance(dataset, metrics, settings, described, is_trained, reason)


def model_card(
    opened: FinetunedModel, origin: Provenance, form: str, licence: str | None
) -> ModelCard:
    """Return the model card: Markdown with the metadata that the hub reads."""
    metrics, title = origin.metrics, origin.described.get("title", origin.dataset)
    results = []
    if metrics.get("acc1") is not None:
        results = [(name, metrics[key]) for key, name in METRICS.items()]
    repo = _repo(origin.settings)
    data = ModelCardData(
        library_name=form,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "latteclip"],
        license=licence or "other",
        license_name=None if licence else "that-of-the-base-model",
        base_model=repo,
        model_name=f"{metrics['method']}-{origin.dataset}" if results else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=origin.dataset,
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
    kinds = {
        None: "A CLIP model",
        True: "A fine-tuned CLIP model",
        False: "A pretrained CLIP model",
    }
    labels = UNKNOWN
    if "marks" in metrics:
        is_supervised = "supervised" in metrics["marks"]
        labels = "read: a supervised upper bound" if is_supervised else "not read"
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        form=form,
        eyes=len(opened.eyes_widths),
        title=title,
        dataset=origin.dataset,
        kind=kinds[origin.is_trained],
        is_trained=origin.is_trained,
        base=_base(origin.settings, repo),
        method=metrics.get("method", UNKNOWN),
        seed="none" if origin.is_trained is False else metrics.get("seed", UNKNOWN),
        templates=opened.words.templates,
        labels=labels,
        reason=origin.reason,
        results=results,
        images=metrics.get("images"),
        licence=licence,
        image_licence=origin.described.get("licence"),
        citation=origin.described.get("citation"),
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
        return UNKNOWN
    tag = settings.get("pretrained")
    name = settings["model"] + (f" with {tag}" if tag else "")
    return f"[{name}](https://huggingface.co/{repo})" if repo else f"`{name}`"
