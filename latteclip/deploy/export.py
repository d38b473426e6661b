"""Export a fine-tuned model for other software.

Each form is a folder with the weights as its library expects them, the classifier, the class names
as CLIP_benchmark reads them, and a model card.

Letters: N images, C classes, D embedding width, H x W the model's input size.
"""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from latteclip.clip import finetuned
from latteclip.clip.model import CLASSIFIER
from latteclip.core import hashing
from latteclip.core.class_templates import PLACE
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing, write_json
from latteclip.deploy.model_card import model_card, read_origin

log = logging.getLogger(__name__)
# As --custom_classname_file and --custom_template_file of CLIP_benchmark read them.
BENCHMARK_CLASSNAMES = "clip_benchmark_classnames.json"
BENCHMARK_TEMPLATES = "clip_benchmark_templates.json"
BENCHMARK_PLACE = "{c}"  # for our {}
GRAPH, PREPROCESSING = "model.onnx", "preprocess.json"
OUTPUTS = ["scores", "probabilities", "image_features"]  # of the graph
LIMIT = 1.8e9  # bytes of weights above which they get a separate file: a graph holds 2 GB


def export(model: str, destination: str, form: str, licence: str | None = None) -> str:
    """Write a fine-tuned model to a new folder, whole or not at all. Return how to upload it.

    Args:
        model: results/<dataset>, where a model was chosen, or the folder of a model or run.
        destination: a folder that does not exist, or is empty.
        form: a key of FORMS.
        licence: of the weights, as the hub spells it.
    """
    folder = new_folder(destination)
    opened = finetuned.load(model, torch.device("cpu"))
    if opened.eyes_widths and form != "open_clip":
        raise UserError(
            f"{model} needs features of image models beside CLIP, which --format {form} cannot "
            "hold; use --format open_clip, or another model of the dataset."
        )
    if folder.is_relative_to(opened.folder.resolve()):
        raise UserError(f"{destination} lies in the folder of the model; name another one.")
    origin = read_origin(opened.folder)
    templates = [one.replace(PLACE, BENCHMARK_PLACE) for one in opened.words.templates]
    with replacing(folder) as temporary:
        temporary.mkdir()
        FORMS[form](opened, temporary)
        shutil.copyfile(opened.folder / CLASSIFIER, temporary / CLASSIFIER)
        write_json(temporary / BENCHMARK_CLASSNAMES, {origin["dataset"]: opened.classnames})
        write_json(temporary / BENCHMARK_TEMPLATES, {origin["dataset"]: templates})
        model_card(opened, origin, form, licence).save(temporary / "README.md")
        hashing.write_sums(temporary)
    log.info("%s: %d classes as %s.", destination, len(opened.classnames), form)
    return f"hf upload <user>/<name> {destination}"


def _open_clip(opened: finetuned.FinetunedModel, folder: Path) -> None:
    """Copy the model folder, which open_clip also reads from the hub."""
    hidden = shutil.ignore_patterns(".*")  # of Snakemake, and half-written files
    shutil.copytree(opened.folder, folder, dirs_exist_ok=True, ignore=hidden)


def _transformers(opened: finetuned.FinetunedModel, folder: Path) -> None:
    from latteclip.deploy import transformers_clip

    transformers_clip.write(opened, folder)


class ImageClassifier(torch.nn.Module):
    """The computation of the graph."""

    def __init__(self, opened: finetuned.FinetunedModel) -> None:
        super().__init__()
        self.model = opened.clip.model
        self.register_buffer("weights", opened.classifier.weights)
        self.register_buffer("bias", opened.classifier.bias)
        self.logit_scale = opened.logit_scale

    def forward(
        self, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scores [N, C], probabilities [N, C] and features [N, D] of images [N, 3, H, W]."""
        features = F.normalize(self.model.encode_image(pixel_values), dim=-1)  # type: ignore[operator]
        scores = features @ self.weights.T + self.bias  # type: ignore[operator]
        return scores, (self.logit_scale * scores).softmax(dim=-1), features


@torch.no_grad()
def _onnx(opened: finetuned.FinetunedModel, folder: Path) -> None:
    """Write the graph with class names in its metadata, and how images are preprocessed."""
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late
    except ImportError as error:
        raise UserError(
            f"--format onnx needs packages that are not installed ({error}); "
            "pip install onnx onnxruntime onnxscript."
        ) from None
    tower: Any = opened.clip.model.visual
    size = tower.preprocess_cfg["size"]
    module = ImageClassifier(opened).eval()
    example = torch.zeros(2, 3, *([size] * 2 if isinstance(size, int) else size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about itself
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["pixel_values"],
                output_names=OUTPUTS,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("images")}},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--format onnx: the image tower {type(tower).__name__} has no ONNX form ({first}); "
            "use --format open_clip."
        ) from error
    assert program is not None  # as it is with dynamo=True
    names = opened.words.as_written(opened.classnames)
    program.model.metadata_props["classnames"] = json.dumps(names)
    n_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(folder / GRAPH, external_data=n_bytes > LIMIT)
    write_json(folder / PREPROCESSING, tower.preprocess_cfg)


FORMS = {"open_clip": _open_clip, "transformers": _transformers, "onnx": _onnx}
