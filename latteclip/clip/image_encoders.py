"""Image encoders beside CLIP ("image_encoders"): networks of timm and image towers of open_clip.

The configuration of a network of timm is a stranger's. It may contain the sizes below and no code.
Weights are safetensors.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file

from latteclip.clip import model as clips
from latteclip.clip.classifier import ENCODERS
from latteclip.clip.clip_config import (
    REMEDY,
    Mean,
    Spread,
    check_numbers,
    check_timm_name,
    known_values,
    section,
)
from latteclip.clip.model import Clip, FinetunedModel
from latteclip.clip.model_files import CLIP_CONFIG
from latteclip.config.models import FOLDER, HUB, OPEN_CLIP
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import read_object
from latteclip.core.terminal import one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
Pixels = Annotated[int, Field(ge=8, le=4096)]
# Arguments of networks that a configuration may give (`model_args`). Others may name code.
ARGUMENTS = {
    "img_size",
    "patch_size",
    "reg_tokens",
    "global_pool",
    "dynamic_img_size",
    "init_values",
}


@dataclass(frozen=True)
class ImagePreprocessing:
    """The keys of `pretrained_cfg` that are used: how images become the input of a network."""

    input_size: tuple[Literal[3], Pixels, Pixels] = (3, 224, 224)
    mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)
    std: tuple[Spread, Spread, Spread] = (0.229, 0.224, 0.225)
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    crop_pct: Annotated[float, Field(ge=0.5, le=2)] = 0.875
    crop_mode: Literal["center", "squash", "border"] = "center"


@dataclass(frozen=True)
class TimmModel:
    """A network of timm with its files."""

    architecture: str
    outputs: int  # classes of its weights, 0 without a classifier
    arguments: dict[str, Any]  # arguments of the network's constructor
    preprocessing: ImagePreprocessing
    config: Path
    weights: Path


@dataclass(kw_only=True)
class TimmEncoder(Clip):
    """A network of timm, which encodes images as a CLIP does and no texts."""

    files: TimmModel

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads as `local-dir:<folder>`."""
        folder.mkdir(parents=True)
        shutil.copyfile(self.files.config, folder / CONFIG)
        shutil.copyfile(self.files.weights, folder / WEIGHTS)


class Pooled(torch.nn.Module):
    """A network of timm under the name by which images are encoded."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] of images [B, 3, H, W]."""
        return self.network(images)  # type: ignore[no-any-return]


def load(name: str, device: torch.device, precision: str = "bf16") -> Clip:
    """Load an image encoder in float32, in evaluation mode.

    It is named as in timm, as `hf-hub:<repo>`, `local-dir:<folder>` or `open_clip:<model>/<tag>`.
    UserError: there is no such model, it is damaged, or it gives no features.
    """
    with clips.loading(f"Image encoder {name!r}", "check image_encoders"):
        if names := open_clip_names(name):
            return clips.load(*names, device, precision)
        import timm  # not at the top: it takes a second

        files = timm_model(name)
        build = partial(
            timm.create_model,
            files.architecture,
            pretrained=False,
            num_classes=files.outputs,
            **files.arguments,
        )
        clips.check_size(build, [files.weights])
        network: Any = build()
        network.load_state_dict(load_file(files.weights))
        network.reset_classifier(0)
        clips.check_finite(network)
        encoder = Pooled(network).eval().to(device)
        values = vars(files.preprocessing)
        with torch.no_grad():
            image = torch.zeros(1, *values["input_size"], device=device)
            [_, width] = encoder.encode_image(image).shape  # no map of features
        return TimmEncoder(
            encoder,
            get_tokenizer=lambda: None,
            preprocess=timm.data.create_transform(**values, is_training=False),
            config={"embed_dim": width},
            device=device,
            precision=precision,
            files=files,
        )


def open_clip_names(name: str) -> tuple[str, str | None] | None:
    """Return model and pretrained of an encoder that open_clip loads, None for one of timm."""
    if name.startswith(OPEN_CLIP):
        model, _, pretrained = name.removeprefix(OPEN_CLIP).rpartition("/")
        return model.replace("/", "-"), pretrained
    is_named = name.startswith((FOLDER, HUB))
    return (name, None) if is_named and _file(name, CLIP_CONFIG) else None


def timm_model(name: str) -> TimmModel:
    """Return a network of timm by its name, `hf-hub:<repo>` or `local-dir:<folder>`.

    Files of the hub are fetched where they are not in its cache. Raises UserError where there is no
    such model, it has no safetensors, or its configuration contains what it may not.
    """
    config, weights = _file(name, CONFIG), _file(name, WEIGHTS)
    if config is None or weights is None:
        raise UserError(
            f"{name} lacks {CONFIG} or {WEIGHTS} of timm, or {CLIP_CONFIG} of open_clip, or cannot "
            "be reached, and weights of other formats are not loaded; name a model that has them."
        )
    values = read_object(config, ["architecture"], REMEDY)
    try:
        check_timm_name(values["architecture"])
        given = section(values, "pretrained_cfg")
        arguments = section(values, "model_args")
        outputs: Any = values.get("num_classes", given.get("num_classes", 1000))
        check_numbers({"num_classes": outputs, **arguments})
        for name in arguments.keys() - ARGUMENTS:
            raise UserError(f"model_args.{one_line(name)} is refused.")
        preprocessing = known_values(ImagePreprocessing, given, "pretrained_cfg")
    except UserError as error:
        raise UserError(f"{config}: {str(error).rstrip('.')}; {REMEDY}.") from None
    return TimmModel(
        values["architecture"], outputs, arguments, preprocessing, config, weights
    )


def _file(name: str, file: str) -> Path | None:
    """Return a file of a model's folder or repo, or None; the cache gets it where it lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER), file)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(repo(name), file))
    except EntryNotFoundError:
        return None


def repo(name: str) -> str:
    """Return the repo of the hub that has the weights of a model."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    import timm

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None or not cfg.hf_hub_id:
        near = suggestion(name, timm.list_models(pretrained=True))
        raise UserError(
            f"timm has no weights of an image encoder {name!r}; {near}"
        )
    return str(cfg.hf_hub_id)


def encoders_of(
    model: FinetunedModel, device: torch.device, precision: str = "bf16"
) -> list[Clip]:
    """Load the image encoders that a classifier needs, or raise UserError if some are missing."""
    folder = model.folder / ENCODERS
    numbers = range(len(model.encoder_widths))
    encoders = [
        load(f"{FOLDER}{folder / str(n)}", device, precision) for n in numbers
    ]
    if [encoder.width for encoder in encoders] != model.encoder_widths:
        raise UserError(
            f"{folder} has other image encoders than the classifier of {model.folder} needs; take "
            "another copy of it."
        )
    return encoders
