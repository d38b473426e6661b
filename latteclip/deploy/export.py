"""Export a fine-tuned model for other software.

Each form is a folder with the weights as its library expects them, the classifier, and a model card
of where it comes from and how to use it.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard, ModelCardData

from latteclip.clip import finetuned
from latteclip.clip.classifier import load_classifier
from latteclip.clip.model import CLASSIFIER
from latteclip.config import layers
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates, clean_classname
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing
from latteclip.core.terminal import counted
from latteclip.deploy import onnx_graph, transformers_clip
from latteclip.deploy.guaranteed_predictions import guarantee, run_of
from latteclip.deploy.predict import Predictor
from latteclip.evaluate.results import read_metrics
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.train.settings import TrainingMetadata

log = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"
FIGURES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
}
PREDICT = "predict.py"  # beside a graph


def export(
    model: str,
    destination: str,
    /,
    format: Literal["open_clip", "transformers", "onnx"],
    licence: str | None = None,
    abstain: float | None = None,
) -> str:
    """Write a tuned model for open_clip, transformers or ONNX.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        destination: new or empty folder
        format: the library that loads it
        licence: licence of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...
        abstain: onnx: include the threshold of predict --abstain
    """
    if abstain is not None and format != "onnx":
        raise UserError("--abstain is for --format onnx.")
    folder = new_folder(destination)
    opened = finetuned.load(model, torch.device("cpu"))
    if opened.encoder_widths and format == "transformers":
        raise UserError(
            f"{model} needs features of image encoders beside CLIP, which --format transformers "
            "cannot hold; use --format open_clip or onnx, or another model of the dataset."
        )
    promise = ""
    metadata = {}
    if abstain is not None:
        threshold = Predictor(opened.folder, device="cpu", abstain=abstain).threshold
        assert threshold is not None
        promise = guarantee(threshold, abstain)
        described = {"max_error": abstain, "threshold": threshold, "guarantee": promise}
        metadata["abstain"] = described
    origin = read_origin(opened.folder)
    with replacing(folder) as temporary:
        temporary.mkdir()
        if format == "onnx":
            onnx_graph.write(opened, temporary, metadata)
            shutil.copyfile(TEMPLATES / PREDICT, temporary / PREDICT)
        elif format == "transformers":
            transformers_clip.write(opened, temporary)
        else:
            _copy_model(opened, temporary)
        shutil.copyfile(opened.folder / CLASSIFIER, temporary / CLASSIFIER)
        card = model_card(opened, origin, format, licence, promise)
        card.save(temporary / "README.md")
    classes = counted(len(opened.classnames), "class", "classes")
    log.info("%s: %s as %s.", destination, classes, format)
    return f"{promise}\nTo upload it: hf upload <user>/<name> {destination}".lstrip()


def _copy_model(opened: finetuned.FinetunedModel, folder: Path) -> None:
    """Copy the model folder, which open_clip also reads from the hub."""
    hidden = shutil.ignore_patterns(".*")  # Snakemake's files, and half-written ones
    shutil.copytree(opened.folder, folder, dirs_exist_ok=True, ignore=hidden)


def read_origin(model: Path) -> dict[str, Any]:
    """Read the files beside a model folder, or beside the run that it was chosen from.

    `clip` has `model` and `pretrained` of the CLIP that the model was before. `is_trained` is None
    where no file says so, `reason` is why the model was chosen, and `answers` is how many of a
    person taught the labels.
    """
    run, reason = run_of(model)
    metrics: dict[str, Any] = {}
    clip: Mapping[str, Any] = {}
    is_trained = None
    if (path := run / "metrics.json").is_file():
        metrics = read_metrics(path)
        is_trained = False
    reads_fused = metrics.get("method", "").startswith("image_prototypes")
    if (path := run / "history.parquet").is_file():
        history = tables.read_metadata(path, TrainingMetadata)
        clip = {"model": history.model, "pretrained": history.pretrained}
        is_trained = True
        reads_fused = history.labels == "fused"
    elif metrics and (path := run.parents[1] / "class_embeddings.safetensors").is_file():
        _, clip = load_classifier(path)
    answers = 0
    if reads_fused and (path := run.parents[1] / NAME).is_file():
        answers = len(read_fusion_report(path).answers.images)
    return {
        "metrics": metrics,
        "clip": clip,
        "is_trained": is_trained,
        "reason": reason,
        "answers": answers,
        "dataset": metrics.get("dataset", "custom"),
    }


def model_card(
    opened: finetuned.FinetunedModel,
    origin: Mapping[str, Any],
    form: str,
    licence: str | None,
    promise: str,
) -> ModelCard:
    """Return the model card: Markdown with the metadata that the hub reads."""
    dataset = origin["dataset"]
    described = layers.datasets().get(dataset, {})
    metrics = origin["metrics"]
    is_known = metrics.get("acc1") is not None
    results = [(name, metrics[key]) for key, name in FIGURES.items() if is_known]
    data = ModelCardData(
        library_name=form,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "latteclip"],
        license=licence or "other",
        license_name=None if licence else "that-of-the-base-model",
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        form=form,
        licence=licence,
        title=described.get("title", dataset),
        described=described,
        **origin,
        results=results,
        promise=promise,
        image_encoders=len(opened.encoder_widths),
        templates=opened.class_templates.templates,
        classes=[_class(name, opened.class_templates) for name in opened.classnames],
    )
    return card


def _class(classname: str, class_templates: ClassTemplates) -> str:
    [name] = class_templates.as_written([classname])
    others = class_templates.synonyms.get(clean_classname(classname, {}))
    return f"{name} (also {', '.join(others)})" if others else name
