"""Write a fine-tuned model for other software.

Each form is a folder with the weights as its library expects them, the classifier, and a model card
of where it comes from and how to use it.
"""

import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelCardData

from latteclip.clip.classifier import load_classifier
from latteclip.clip.image_encoders import (
    ImagePreprocessing,
    TimmEncoder,
    encoders_of,
)
from latteclip.clip.model import Clip, FinetunedModel, load_finetuned
from latteclip.clip.model_files import CLASSIFIER
from latteclip.config import layers
from latteclip.core import tables
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import read_object, replacing
from latteclip.deploy import transformers_clip
from latteclip.deploy.guaranteed_predictions import (
    abstention_threshold,
    guarantee,
    run_of,
)
from latteclip.deploy.predictor import Predictor
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.train.settings import TrainingMetadata

TEMPLATES = Path(__file__).parent / "templates"
PREDICT = "predict.py"  # beside a graph
GRAPH = "model.onnx"
# Of CLIP; image encoders have pixel_values_1, pixel_values_2, ...
INPUT = "pixel_values"
# Bytes of weights above which they get a separate file: a graph holds 2 GB.
LIMIT = 1.8e9
PACKAGES = "pip install onnx onnxruntime onnxscript"
# By timm's crop_mode.
RESIZES = {"center": "shortest", "border": "longest", "squash": "squash"}


def write_model(
    model: Path,
    folder: Path,
    form: Literal["open_clip", "transformers", "onnx"],
    abstain: float | None = None,
) -> None:
    """Write a model and its card into a new or empty folder, or raise UserError.

    `abstain` adds the threshold of a guarantee to an ONNX graph.
    """
    opened = load_finetuned(model, torch.device("cpu"))
    if opened.encoder_widths and form == "transformers":
        raise UserError(
            f"{model} needs features of image encoders beside CLIP, which --format transformers "
            "cannot hold; use --format open_clip or onnx, or another model of the dataset."
        )
    threshold, promise = 0.0, ""
    if abstain is not None:
        classify = Predictor(opened.folder, device="cpu")
        threshold = abstention_threshold(opened, classify, abstain)
        promise = guarantee(threshold, abstain)
    with replacing(folder) as temporary:
        temporary.mkdir()
        if form == "onnx":
            write_onnx(opened, temporary, threshold)
            shutil.copyfile(TEMPLATES / PREDICT, temporary / PREDICT)
        elif form == "transformers":
            transformers_clip.write(opened, temporary)
        else:
            # The model folder, which open_clip also reads from the hub, without Snakemake's files.
            hidden = shutil.ignore_patterns(".*")
            shutil.copytree(
                opened.folder, temporary, dirs_exist_ok=True, ignore=hidden
            )
        shutil.copyfile(opened.folder / CLASSIFIER, temporary / CLASSIFIER)
        card = model_card(opened, form, promise)
        card.save(temporary / "README.md")


def model_card(opened: FinetunedModel, form: str, promise: str) -> ModelCard:
    """Return the model card: Markdown with the metadata that the hub reads.

    Its facts are in the files beside the model folder, or beside the run that it was chosen from.
    """
    run, reason = run_of(opened.folder)
    history, metrics_file = run / "history.parquet", run / "metrics.json"
    embeddings = run.parent.parent / "class_embeddings.safetensors"
    clip: Mapping[str, Any] = {}  # the CLIP that the model was before
    if history.is_file():
        clip = vars(tables.read_metadata(history, TrainingMetadata))
    elif embeddings.is_file():
        _, clip = load_classifier(embeddings)
    labels = clip.get("labels")
    metrics = read_object(metrics_file) if metrics_file.is_file() else {}
    report_file = run.parent.parent / NAME
    n_answers = 0  # from which the labels and so the model learned
    if report_file.is_file():
        report = read_fusion_report(report_file)
        if labels == "fused" or metrics.get("method") in report.checks:
            n_answers = len(report.answers)
    dataset = metrics.get("dataset", "custom")
    described = layers.defaults()["datasets"].get(dataset, {})
    data = ModelCardData(
        library_name=form,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "latteclip"],
        license="other",
        license_name="that-of-the-base-model",
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        form=form,
        title=described.get("title", dataset),
        dataset=dataset,
        described=described,
        clip=clip,
        is_trained=history.is_file(),
        reason=reason,
        metrics=metrics,
        n_answers=n_answers,
        promise=promise,
        image_encoders=len(opened.encoder_widths),
        templates=opened.class_templates.templates,
        classes=opened.class_templates.as_written(opened.classnames),
    )
    return card


def of_open_clip(
    config: Mapping[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """Return how an upright RGB image becomes an input, by a `preprocess_cfg` of open_clip.

    It is resized so that its sides are `target`, or that the shorter or longer one is. A crop or a
    border of the colour `fill` about the centre gives `size` (both height and width). From colours
    between 0 and 1, `mean` is subtracted, before `std` divides.
    """
    return {
        "resize": config["resize_mode"],
        "target": size,
        "size": size,
        "interpolation": "BILINEAR"
        if config["interpolation"] == "bilinear"
        else "BICUBIC",
        "fill": [config["fill_color"]] * 3,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def of_timm(config: ImagePreprocessing) -> dict[str, Any]:
    """Return the same by a `pretrained_cfg` of timm."""
    size = list(config.input_size[1:])
    is_bordered = config.crop_mode == "border"
    return {
        "resize": RESIZES[config.crop_mode],
        "target": [math.floor(side / config.crop_pct) for side in size],
        "size": size,
        "interpolation": config.interpolation.upper(),
        "fill": [
            round(255 * value) if is_bordered else 0 for value in config.mean
        ],
        "mean": list(config.mean),
        "std": list(config.std),
    }


class ImageClassifier(torch.nn.Module):
    """The computation of the graph."""

    def __init__(self, opened: FinetunedModel, encoders: list[Clip]) -> None:
        super().__init__()
        self.towers = torch.nn.ModuleList(
            [opened.clip.model, *(encoder.model for encoder in encoders)]
        )
        self.register_buffer("weights", opened.classifier.weights)
        self.register_buffer("bias", opened.classifier.bias)
        self.logit_scale = opened.logit_scale

    def forward(self, *pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return scores [N, C], probabilities [N, C] and features [N, D].

        Each tower has images [N, 3, H, W] of its own size.
        """
        towers = zip(self.towers, pixel_values, strict=True)
        each = [F.normalize(tower.encode_image(x), dim=-1) for tower, x in towers]  # type: ignore[operator]
        features = torch.cat(each, dim=-1)
        scores = features @ self.weights.T + self.bias  # type: ignore[operator]
        return scores, (self.logit_scale * scores).softmax(dim=-1), features


def inputs_of(
    opened: FinetunedModel, encoders: list[Clip]
) -> list[dict[str, Any]]:
    """Return the inputs of the graph: CLIP's, and then those of the image encoders."""
    inputs = []
    for number, model in enumerate([opened.clip, *encoders]):
        name = f"{INPUT}_{number}" if number else INPUT
        if isinstance(model, TimmEncoder):
            preprocessing = of_timm(model.files.preprocessing)
        else:
            tower: Any = model.model.visual
            preprocessing = of_open_clip(tower.preprocess_cfg, model.input_size)
        inputs.append({"name": name, **preprocessing})
    return inputs


@torch.no_grad()
def write_onnx(opened: FinetunedModel, folder: Path, threshold: float) -> None:
    """Write a model, image encoders included, as one ONNX graph, or raise UserError.

    The metadata of the graph are JSON: `classnames`, `inputs` (how an image becomes each input),
    and `threshold` (of a guarantee, or 0). `templates/predict.py` classifies images by them alone.
    """
    encoders = encoders_of(opened, torch.device("cpu"))
    inputs = inputs_of(opened, encoders)
    module = ImageClassifier(opened, encoders).eval()
    images = torch.export.Dim("images")
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about itself
            program = torch.onnx.export(
                module,
                tuple(torch.zeros(2, 3, *each["size"]) for each in inputs),
                input_names=[each["name"] for each in inputs],
                output_names=["scores", "probabilities", "image_features"],
                dynamic_shapes={
                    "pixel_values": tuple({0: images} for _ in inputs)
                },
                dynamo=True,
                verbose=False,
            )
    except (ImportError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(
            f"--format onnx: {first_line(error)}; {PACKAGES}, or use --format open_clip if a "
            "network of this model has no ONNX form."
        ) from error
    assert program is not None  # as it is with dynamo=True
    names = opened.class_templates.as_written(opened.classnames)
    metadata = {"classnames": names, "inputs": inputs, "threshold": threshold}
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
    n_bytes = sum(
        weights.numel() * weights.element_size() for weights in module.parameters()
    )
    program.save(folder / GRAPH, external_data=n_bytes > LIMIT)
