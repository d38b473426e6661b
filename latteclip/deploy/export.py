"""Export a fine-tuned model for other software.

Each form is a folder with the weights as its library expects them, the classifier, the class names
as CLIP_benchmark reads them, and a model card of where it comes from and how to use it.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latteclip.clip import finetuned
from latteclip.clip.classifier import load_classifier
from latteclip.clip.model import CLASSIFIER
from latteclip.config import layers
from latteclip.core import hashing, tables
from latteclip.core.class_templates import PLACE, ClassTemplates, clean_classname
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import new_folder, replacing, write_json
from latteclip.core.open_clip_import import open_clip
from latteclip.deploy import transformers_clip
from latteclip.deploy.model_origin import run_of
from latteclip.evaluate.results import read_metrics
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.train.history import TrainingMetadata

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
FIGURES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
}
LIMIT = 1.8e9  # bytes of weights above which they get a separate file: a graph holds 2 GB


def export(
    model: str,
    destination: str,
    /,
    format: Literal["open_clip", "transformers", "onnx"],
    licence: str | None = None,
) -> str:
    """Write a tuned model as open_clip, transformers or ONNX load it.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        destination: new or empty folder
        format: the library that loads it
        licence: of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...
    """
    folder = new_folder(destination)
    opened = finetuned.load(model, torch.device("cpu"))
    if opened.encoder_widths and format != "open_clip":
        raise UserError(
            f"{model} needs features of image encoders beside CLIP, which --format {format} cannot "
            "hold; use --format open_clip, or another model of the dataset."
        )
    if folder.is_relative_to(opened.folder.resolve()):
        raise UserError(f"{destination} lies in the folder of the model; name another one.")
    origin = read_origin(opened.folder)
    classnames = {origin["dataset"]: opened.classnames}
    templates = {
        origin["dataset"]: [
            t.replace(PLACE, "{c}") for t in opened.class_templates.templates
        ]
    }
    with replacing(folder) as temporary:
        temporary.mkdir()
        FORMS[format](opened, temporary)
        shutil.copyfile(opened.folder / CLASSIFIER, temporary / CLASSIFIER)
        # As --custom_classname_file and --custom_template_file of CLIP_benchmark read them.
        write_json(temporary / "clip_benchmark_classnames.json", classnames)
        write_json(temporary / "clip_benchmark_templates.json", templates)
        model_card(opened, origin, format, licence).save(temporary / "README.md")
        hashing.write_sums(temporary)
    log.info("%s: %d classes as %s.", destination, len(opened.classnames), format)
    return f"To upload it: hf upload <user>/<name> {destination}"


def _open_clip(opened: finetuned.FinetunedModel, folder: Path) -> None:
    """Copy the model folder, which open_clip also reads from the hub."""
    hidden = shutil.ignore_patterns(".*")  # Snakemake's files, and half-written ones
    shutil.copytree(opened.folder, folder, dirs_exist_ok=True, ignore=hidden)


class ImageClassifier(torch.nn.Module):
    """The computation of the graph."""

    def __init__(self, opened: finetuned.FinetunedModel) -> None:
        super().__init__()
        self.model = opened.clip.model
        self.register_buffer("weights", opened.classifier.weights)
        self.register_buffer("bias", opened.classifier.bias)
        self.logit_scale = opened.logit_scale

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return scores [N, C], probabilities [N, C] and features [N, D] of images [N, 3, H, W]."""
        features = F.normalize(self.model.encode_image(pixel_values), dim=-1)  # type: ignore[operator]
        scores = features @ self.weights.T + self.bias  # type: ignore[operator]
        return scores, (self.logit_scale * scores).softmax(dim=-1), features


@torch.no_grad()
def _onnx(opened: finetuned.FinetunedModel, folder: Path) -> None:
    """Write the graph with class names in its metadata, and how images are preprocessed."""
    tower: Any = opened.clip.model.visual
    size = tower.preprocess_cfg["size"]
    module = ImageClassifier(opened).eval()
    height, width = (size, size) if isinstance(size, int) else size
    example = torch.zeros(2, 3, height, width)
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about itself
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["pixel_values"],
                output_names=["scores", "probabilities", "image_features"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("images")}},
                dynamo=True,
                verbose=False,
            )
    except (ImportError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(
            f"--format onnx: {first_line(error)}; pip install onnx onnxruntime onnxscript, or use "
            f"--format open_clip if {type(tower).__name__} has no ONNX form."
        ) from error
    assert program is not None  # as it is with dynamo=True
    names = opened.class_templates.as_written(opened.classnames)
    program.model.metadata_props["classnames"] = json.dumps(names)
    n_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(folder / "model.onnx", external_data=n_bytes > LIMIT)
    write_json(folder / "preprocess.json", tower.preprocess_cfg)


FORMS = {"open_clip": _open_clip, "transformers": transformers_clip.write, "onnx": _onnx}


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
    if (path := run / "history.parquet").is_file():
        history = tables.read_metadata(path, TrainingMetadata)
        clip = {"model": history.model, "pretrained": history.pretrained}
        is_trained = "diverged" not in history.flags
    elif metrics and (path := run.parents[1] / "class_embeddings.safetensors").is_file():
        clip = load_classifier(path)[1]
    reads_fused = metrics.get("method", "").startswith("image_prototypes")
    if (path := run / "history.parquet").is_file():
        reads_fused = tables.read_metadata(path, TrainingMetadata).labels == "fused"
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
) -> ModelCard:
    """Return the model card: Markdown with the metadata that the hub reads."""
    metrics = origin["metrics"]
    dataset = origin["dataset"]
    described = layers.datasets().get(dataset, {})
    title = described.get("title", dataset)
    is_known = metrics.get("acc1") is not None
    results = [(name, metrics[key]) for key, name in FIGURES.items() if is_known]
    of_test = {"dataset_type": dataset, "dataset_name": title, "dataset_split": "test"}
    task = {"task_type": "image-classification", "metric_type": "accuracy", **of_test}
    repo = _repo(origin["clip"])
    data = ModelCardData(
        library_name=form,
        pipeline_tag="zero-shot-image-classification",
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
        template_path=str(TEMPLATE),
        form=form,
        licence=licence,
        title=title,
        described=described,
        **origin,
        results=results,
        repo=repo,
        image_encoders=len(opened.encoder_widths),
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
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    known = open_clip.get_pretrained_cfg(model.replace("/", "-"), tag)
    return str(known.get("hf_hub", "")).strip("/") or None
