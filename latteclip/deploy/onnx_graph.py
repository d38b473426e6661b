"""Write a tuned model, image encoders included, as one ONNX graph with all that a user needs.

The metadata of the graph are JSON: `classnames`, `inputs` (how an image becomes each input), and
`abstain` (the threshold of a guarantee). `templates/predict.py` classifies images by them alone.
"""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from latteclip.clip.finetuned import FinetunedModel
from latteclip.clip.image_encoders import ImageEncoder, ImagePreprocessing
from latteclip.core.errors import UserError, first_line
from latteclip.deploy.predict import encoders_of

MODEL = "model.onnx"
INPUT = "pixel_values"  # of CLIP; image encoders have pixel_values_1, pixel_values_2, ...
LIMIT = 1.8e9  # bytes of weights above which they get a separate file: a graph holds 2 GB
PACKAGES = "pip install onnx onnxruntime onnxscript"
RESIZES = {
    "center": "shortest",
    "border": "longest",
    "squash": "squash",
}  # of timm's crop_mode


def of_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how an upright RGB image becomes an input, by a `preprocess_cfg` of open_clip.

    It is resized so that its sides are `target`, or that the shorter or longer one is. A crop or a
    border of the colour `fill` about the centre gives `size` (both height and width). From colours
    between 0 and 1, `mean` is subtracted, before `std` divides.
    """
    given = config["size"]
    size = [given, given] if isinstance(given, int) else list(given)
    return {
        "resize": config["resize_mode"],
        "target": size,
        "size": size,
        "interpolation": "BILINEAR" if config["interpolation"] == "bilinear" else "BICUBIC",
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
        "fill": [round(255 * value) if is_bordered else 0 for value in config.mean],
        "mean": list(config.mean),
        "std": list(config.std),
    }


class ImageClassifier(torch.nn.Module):
    """The computation of the graph."""

    def __init__(self, opened: FinetunedModel, encoders: list[ImageEncoder]) -> None:
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


def inputs_of(opened: FinetunedModel, encoders: list[ImageEncoder]) -> list[dict[str, Any]]:
    """Return the inputs of the graph: CLIP's, and then those of the image encoders."""
    inputs = []
    for number, model in enumerate([opened.clip, *encoders]):
        name = f"{INPUT}_{number}" if number else INPUT
        if isinstance(model, ImageEncoder) and model.timm is not None:
            preprocessing = of_timm(model.timm.preprocessing)
        else:
            tower: Any = model.model.visual
            preprocessing = of_open_clip(tower.preprocess_cfg)
        inputs.append({"name": name, **preprocessing})
    return inputs


@torch.no_grad()
def write(opened: FinetunedModel, folder: Path, further: Mapping[str, Any]) -> None:
    """Write the graph into a folder, with its metadata and further ones, or raise UserError."""
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
                dynamic_shapes={"pixel_values": tuple({0: images} for _ in inputs)},
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
    metadata = {"classnames": names, "inputs": inputs, **further}
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
    n_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(folder / MODEL, external_data=n_bytes > LIMIT)
