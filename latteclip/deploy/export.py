"""Export a fine-tuned model for other software.

Each form is a folder with the weights as its library expects them, the classifier, the class names
as CLIP_benchmark reads them, and a model card of where it comes from and how to use it.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latteclip.clip import finetuned
from latteclip.clip.classifier import load_classifier
from latteclip.clip.model import CLASSIFIER
from latteclip.config import layers
from latteclip.config.hub_names import HUB
from latteclip.core import hashing, tables
from latteclip.core.class_templates import PLACE, ClassTemplates, clean_classname
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing, write_json
from latteclip.core.open_clip_import import open_clip
from latteclip.deploy import onnx_graph, onnx_int8, transformers_clip
from latteclip.deploy.hub_upload import Upload
from latteclip.deploy.model_origin import (
    Classify,
    abstention_threshold,
    refuse_without_guarantee,
    run_of,
)
from latteclip.deploy.predict import Predictor, encoders_of
from latteclip.evaluate.results import read_metrics
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.train.history import TrainingMetadata

log = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"
FIGURES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
}
TASK = "image-classification"
PREDICT = "predict.py"  # beside a graph


def export(
    model: str,
    destination: str,
    /,
    format: Literal["open_clip", "transformers", "onnx"],
    licence: str | None = None,
    int8: bool = False,
    pictures: Sequence[str] = (),
    abstain: float | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
    dry_run: bool = False,
) -> str:
    """Write a tuned model for open_clip, transformers or ONNX.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        destination: new or empty folder
        format: the library that loads it
        licence: licence of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...
        int8: onnx: quantise weights and activations to 8 bits, and report what that changes
        pictures: onnx, int8: images or folders that calibrate it (default: those of the dataset)
        abstain: onnx: include the threshold of predict --abstain
        push_to_hub: upload the folder to a new repository of Hugging Face, <user>/<name>
        public: make that repository public
        dry_run: say what would be uploaded
    """
    if format != "onnx" and (int8 or pictures or abstain):
        raise UserError("--int8, --pictures and --abstain are for --format onnx.")
    upload = Upload.asked(push_to_hub, "model", public=public, dry_run=dry_run)
    folder = new_folder(destination)
    if upload is not None:
        upload.refuse_existing()
    opened = finetuned.load(model, torch.device("cpu"))
    if opened.student_scale is not None and format != "onnx":
        raise UserError(
            f"{model} is a student, a network of timm without texts; use --format onnx, or copy "
            f"its folder for the image encoders of another program."
        )
    if opened.encoder_widths and format == "transformers":
        raise UserError(
            f"{model} needs features of image encoders beside CLIP, which --format transformers "
            "cannot hold; use --format open_clip or onnx, or another model of the dataset."
        )
    if folder.is_relative_to(opened.folder.resolve()):
        raise UserError(f"{destination} lies in the folder of the model; name another one.")
    if abstain is not None:
        refuse_without_guarantee(opened, abstain, is_exact=not int8)
    origin = read_origin(opened.folder)
    dataset = origin["dataset"]
    templates = [t.replace(PLACE, "{c}") for t in opened.class_templates.templates]
    drawn = onnx_int8.draw_pictures(opened, pictures) if int8 else None
    notes: list[str] = []
    with replacing(folder) as temporary:
        temporary.mkdir()
        FORMS[format](opened, temporary)
        if format == "onnx":
            notes = _complete_onnx(opened, temporary, drawn, abstain)
        shutil.copyfile(opened.folder / CLASSIFIER, temporary / CLASSIFIER)
        # As --custom_classname_file and --custom_template_file of CLIP_benchmark read them.
        classnames = {dataset: opened.classnames}
        write_json(temporary / "clip_benchmark_classnames.json", classnames)
        write_json(temporary / "clip_benchmark_templates.json", {dataset: templates})
        model_card(opened, origin, format, licence, notes).save(temporary / "README.md")
        hashing.write_sums(temporary)
    log.info("%s: %d classes as %s.", destination, len(opened.classnames), format)
    further = f"To upload it: --push-to-hub <user>/<name>, or hf upload <user>/<name> {destination}"
    if upload is not None:
        further = upload.push(folder)
    return "\n".join([*notes, further])


def _open_clip(opened: finetuned.FinetunedModel, folder: Path) -> None:
    """Copy the model folder, which open_clip also reads from the hub."""
    hidden = shutil.ignore_patterns(".*")  # Snakemake's files, and half-written ones
    shutil.copytree(opened.folder, folder, dirs_exist_ok=True, ignore=hidden)


def _complete_onnx(
    opened: finetuned.FinetunedModel,
    folder: Path,
    pictures: onnx_int8.Pictures | None,
    abstain: float | None,
) -> list[str]:
    """Quantise the graph, add a threshold, and return sentences on both."""
    shutil.copyfile(TEMPLATES / PREDICT, folder / PREDICT)
    notes = []
    classify: Classify | None = None
    if pictures is not None:
        models = [opened.clip, *encoders_of(opened, torch.device("cpu"))]
        prepare = partial(onnx_graph.prepare, models)
        notes = [onnx_int8.quantise(folder, pictures, prepare).sentence]
        classify = onnx_int8.GraphClassifier(folder, prepare)
    if abstain is None:
        return notes
    if classify is None:
        classify = Predictor(opened.folder, device="cpu")
    threshold = abstention_threshold(opened, classify, abstain, is_exact=pictures is None)
    promise = (
        f"Predictions with a probability below {threshold:.4f} are abstained from: with 95 % "
        f"probability, at most {100 * abstain:g} % of all predictions are wrong and not abstained "
        "from, for images like the training images."
    )
    described = {"max_error": abstain, "threshold": threshold, "guarantee": promise}
    onnx_graph.add_metadata(folder, "abstain", described)
    return [*notes, promise]


FORMS = {
    "open_clip": _open_clip,
    "transformers": transformers_clip.write,
    "onnx": onnx_graph.write,
}


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
        is_trained = "diverged" not in history.flags
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
    notes: Sequence[str] = (),
) -> ModelCard:
    """Return the model card: Markdown with the metadata that the hub reads."""
    metrics = origin["metrics"]
    dataset = origin["dataset"]
    described = layers.datasets().get(dataset, {})
    title = described.get("title", dataset)
    is_known = metrics.get("acc1") is not None
    results = [(name, metrics[key]) for key, name in FIGURES.items() if is_known]
    of_test = {"dataset_type": dataset, "dataset_name": title, "dataset_split": "test"}
    task = {"task_type": TASK, "metric_type": "accuracy", **of_test}
    repo = _repo(origin["clip"])
    data = ModelCardData(
        library_name=form,
        pipeline_tag=TASK if opened.student_scale is not None else f"zero-shot-{TASK}",
        tags=["clip", "latteclip"],
        license=licence or "other",
        license_name=None if licence else "that-of-the-base-model",
        base_model=repo,
        model_name=f"{metrics['method']}-{dataset}" if results else None,
        eval_results=[EvalResult(**task, metric_name=n, metric_value=v) for n, v in results]
        or None,
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        form=form,
        licence=licence,
        title=title,
        described=described,
        **origin,
        results=results,
        notes=notes,
        repo=repo,
        image_encoders=len(opened.encoder_widths),
        student=opened.student_scale is not None,
        templates=opened.class_templates.templates,
        classes=[_class(name, opened.class_templates) for name in opened.classnames],
    )
    return card


def _class(classname: str, class_templates: ClassTemplates) -> str:
    [name] = class_templates.as_written([classname])
    others = class_templates.synonyms.get(clean_classname(classname, {}))
    return f"{name} (also {', '.join(others)})" if others else name


def _repo(clip: Mapping[str, Any]) -> str | None:
    """Return the base model's repository on the hub, where open_clip knows it."""
    model = str(clip.get("model", ""))
    tag = clip.get("pretrained") or ""
    if model.startswith(HUB):
        return model.removeprefix(HUB)
    known = open_clip.get_pretrained_cfg(model.replace("/", "-"), tag)
    return str(known.get("hf_hub", "")).strip("/") or None
