"""The README of an exported model: what it is, how it was made, and how well it does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import MODEL, TunedModel
from latteclip.config import layers
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates, clean_classname
from latteclip.core.open_clip_import import open_clip
from latteclip.evaluate.results import read_metrics, read_selection

PAPER = (
    "Cao, Jaritz, Guillaumin, de Charette, Bazzani, *LatteCLIP: Unsupervised CLIP Fine-Tuning via "
    "LMM-Synthetic Texts*, WACV 2025, [arXiv 2410.08211](https://arxiv.org/abs/2410.08211)"
)
METRICS = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
}
USE = {
    "open_clip": """\
import open_clip
from PIL import Image, ImageOps
from safetensors.torch import load_file

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:<this folder>")
head = load_file("<this folder>/prototypes.safetensors")
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")  # upright
features = model.eval().encode_image(preprocess(image)[None], normalize=True)  # [1, D]
scores = features @ head["classifier"].T + head["classifier_bias"]  # [1, C]
label = scores.argmax(1)
""",
    "transformers": """\
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("<this folder>")
processor = CLIPProcessor.from_pretrained("<this folder>")
head = load_file("<this folder>/prototypes.safetensors")
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")  # upright
output = model.get_image_features(**processor(images=image, return_tensors="pt"))
features = torch.nn.functional.normalize(output.pooler_output, dim=-1)  # [1, D]
scores = features @ head["classifier"].T + head["classifier_bias"]  # [1, C]
label = scores.argmax(1)
""",
    "onnx": """\
import json
import onnxruntime

session = onnxruntime.InferenceSession("<this folder>/model.onnx")
classnames = json.loads(session.get_modelmeta().custom_metadata_map["classnames"])
# pixels [N, 3, H, W]: turned upright by PIL's ImageOps.exif_transpose, then resized and normalised
# as preprocess.json says
scores, probabilities, image_features = session.run(None, {"pixel_values": pixels})
label = probabilities.argmax(1)
""",
}
NOTES = {
    "transformers": [
        "`CLIPModel` by itself, as in the zero-shot pipeline, compares images with the class "
        "texts, and has no place for the vectors and the biases of this classifier.\n"
    ]
}


@dataclass(frozen=True)
class Provenance:
    """What the files beside a model say about it; empty where they are missing."""

    dataset: str = "custom"
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of metrics.json
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the training, or of CLIP alone
    described: Mapping[str, Any] = field(default_factory=dict)  # what files say of the dataset
    is_trained: bool | None = None  # None where no file says
    reason: str = ""  # why it was chosen, where it was


def provenance(model: Path) -> Provenance:
    """Read what lies beside the folder of a model, or of the run that it was chosen from.

    That is metrics.json, and history.parquet of a training or the class embeddings of the dataset.

    Raises:
        UserError: a file is broken.
    """
    model = model.absolute()
    run, reason = model.parent, ""
    selection_file = run / f"selection{model.name.removeprefix(MODEL)}.json"
    if selection_file.is_file():
        selection = read_selection(selection_file)
        run, reason = run / selection.method / f"seed{selection.seed}", selection.reason
    metrics_file, history_file = (run / name for name in ("metrics.json", "history.parquet"))
    embeddings = run.parents[1] / "class_embeddings.safetensors"
    metrics = read_metrics(metrics_file) if metrics_file.is_file() else {}
    settings: Mapping[str, Any] = {}
    is_trained = None
    if history_file.is_file():
        is_trained = True
        settings = tables.read_metadata(history_file, "step").get("settings", {})
    elif metrics:
        is_trained = False
        settings = load_classifier(embeddings)[1] if embeddings.is_file() else {}
    dataset = metrics.get("dataset", "custom")
    described = layers.datasets().get(dataset, {})
    return Provenance(dataset, metrics, settings, described, is_trained, reason)


def card(opened: TunedModel, origin: Provenance, form: str, licence: str | None) -> str:
    """The model card, Markdown under the YAML that the hub reads."""
    parts = [
        f"---\n{yaml.safe_dump(_front(origin, form, licence), sort_keys=False)}---\n",
        f"# CLIP adapted to {origin.described.get('title', origin.dataset)}\n",
        f"{_kind(origin)} with a classifier for {len(opened.classnames)} classes, a vector and a "
        "bias per class, in `prototypes.safetensors`.\n",
        "## How it was made\n",
        *_made(opened, origin),
        *_numbers(origin),
        "## Use\n",
        f"```python\n{USE[form]}```\n",
        "Probabilities are the softmax of the scores times the exponential of the model's "
        "`logit_scale`.\n",
        *NOTES.get(form, []),
        "`clip_benchmark_classnames.json` and `clip_benchmark_templates.json` are for "
        "`--custom_classname_file` and `--custom_template_file` of CLIP_benchmark, which compares "
        "images with the class texts, not with the prototypes.\n",
        "## Licence\n",
        _licence(origin, licence),
        "## Classes\n",
        ", ".join(_class(name, opened.words) for name in opened.classnames) + "\n",
        "## Citation\n",
        f"{PAPER}.\n",
    ]
    return "\n".join(parts)


def _kind(origin: Provenance) -> str:
    if origin.is_trained is None:
        return "A CLIP model"
    return "A fine-tuned CLIP model" if origin.is_trained else "A pretrained CLIP model as it is"


def _class(classname: str, words: ClassTemplates) -> str:
    """A class, and what else it is called."""
    [name] = words.as_written([classname])
    others = words.synonyms.get(clean_classname(classname, {}))
    return f"{name} (also {', '.join(others)})" if others else name


def _front(origin: Provenance, form: str, licence: str | None) -> dict[str, Any]:
    """The keys that the hub reads of a model card."""
    front: dict[str, Any] = {
        "library_name": form,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "latteclip"],
    }
    if licence:
        front["license"] = licence
    else:
        front |= {"license": "other", "license_name": "that-of-the-base-model"}
    repo = _repo(origin.settings)
    if repo:
        front["base_model"] = repo
    if origin.metrics.get("acc1") is not None:
        front["model-index"] = [
            {
                "name": f"{origin.metrics['method']}-{origin.dataset}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "type": origin.dataset,
                            "name": origin.described.get("title", origin.dataset),
                            "split": "test",
                        },
                        "metrics": [
                            {"type": "accuracy", "name": name, "value": origin.metrics[key]}
                            for key, name in METRICS.items()
                        ],
                    }
                ],
            }
        ]
    return front


def _repo(settings: Mapping[str, Any]) -> str | None:
    """The base model's repo on the hub, where open_clip knows it."""
    model, tag = str(settings.get("model", "")), settings.get("pretrained")
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    if not tag:
        return None
    known = open_clip.get_pretrained_cfg(model.replace("/", "-"), tag)
    return str(known.get("hf_hub", "")).strip("/") or None


def _base(settings: Mapping[str, Any]) -> str:
    if not settings:
        return "not recorded"
    tag = settings.get("pretrained")
    name = settings["model"] + (f" with {tag}" if tag else "")
    repo = _repo(settings)
    return f"[{name}](https://huggingface.co/{repo})" if repo else f"`{name}`"


def _made(opened: TunedModel, origin: Provenance) -> list[str]:
    rows = {
        "base model": _base(origin.settings),
        "dataset": origin.described.get("title", origin.dataset),
        "method": origin.metrics.get("method", "not recorded"),
        "seed": "none, nothing was trained"
        if origin.is_trained is False
        else origin.metrics.get("seed", "not recorded"),
        "class template": _templates(opened.words.templates),
        "labels of training images": _labels(origin.metrics),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    why = [f"Chosen among several without labels: {origin.reason}\n"] if origin.reason else []
    return ["\n".join(["| | |", "|---|---|", *lines]) + "\n", *why]


def _templates(templates: list[str]) -> str:
    more = f", and {len(templates) - 1} more for zero-shot labels" if len(templates) > 1 else ""
    return f"`{templates[0]}`{more}"


def _labels(metrics: Mapping[str, Any]) -> str:
    if "marks" not in metrics:
        return "not recorded"
    return "read: a supervised upper bound" if "supervised" in metrics["marks"] else "not read"


def _numbers(origin: Provenance) -> list[str]:
    if origin.metrics.get("acc1") is None:
        return []
    lines = [f"| {name} | {100 * origin.metrics[key]:.2f} % |" for key, name in METRICS.items()]
    seed = ", this one seed" if origin.is_trained else ""
    head = f"On the {origin.metrics['images']} test images of {origin.dataset}{seed}:\n"
    return ["## Results\n", head, "\n".join(["| | |", "|---|---|", *lines]) + "\n"]


def _licence(origin: Provenance, licence: str | None) -> str:
    words = (
        f"The weights: {licence}."
        if licence
        else "The weights derive from the base model, whose licence applies."
    )
    images = origin.described.get("licence")
    if images:
        words += f" The images of {origin.dataset}: {images}."
    if citation := origin.described.get("citation"):
        words += f" Their source: {citation}."
    return words + "\n"
