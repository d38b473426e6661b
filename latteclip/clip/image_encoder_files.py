"""Find the files of image encoders beside CLIP, and check their configuration.

A configuration is a stranger's. It names a network of timm, and may contain the sizes below and no
code. Weights are safetensors.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from latteclip.clip.clip_config import REMEDY, Mean, Spread, fields_of, section
from latteclip.config.hub_names import CLIP_CONFIG, FOLDER, HUB, OPEN_CLIP
from latteclip.core import hashing
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import from_values, read_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
Side = Annotated[int, Field(ge=0, le=4096)]  # pixels
Pixels = Annotated[int, Field(ge=8, le=4096)]


@dataclass(frozen=True)
class Sizes:
    """The number of classes, and the keys of `model_args` that are used. Others may name code."""

    num_classes: Annotated[int, Field(ge=0, le=10**6)]
    img_size: Side | tuple[Side, Side] | None = None
    patch_size: Side | tuple[Side, Side] | None = None
    reg_tokens: Side | None = None
    global_pool: str | None = None
    dynamic_img_size: bool | None = None
    init_values: float | None = None


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


def open_clip_names(name: str) -> tuple[str, str | None] | None:
    """Return model and pretrained of an encoder that open_clip loads, None for one of timm."""
    if name.startswith(OPEN_CLIP):
        model, _, pretrained = name.removeprefix(OPEN_CLIP).rpartition("/")
        return model.replace("/", "-"), pretrained
    if name.startswith(FOLDER):
        has_config = (Path(name.removeprefix(FOLDER)) / CLIP_CONFIG).is_file()
        return (name, None) if has_config else None
    if not name.startswith(HUB):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(name.removeprefix(HUB), CLIP_CONFIG)
    except EntryNotFoundError:  # also where it is not in the cache
        return None
    return name, None


def timm_model(name: str) -> TimmModel:
    """Return a network of timm by its name, `hf-hub:<repo>` or `local-dir:<folder>`.

    Files of the hub are fetched where they are not in its cache. Raises UserError where there is no
    such model, it has no safetensors, or its configuration contains what it may not.
    """
    import timm

    config, weights = _files(name)
    values = read_object(config, [], REMEDY)
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(
            f"{config} names no network of timm (architecture); name a model of timm or open_clip."
        )
    try:
        given = section(values, "pretrained_cfg")
        arguments = section(values, "model_args")
        outputs: Any = values.get("num_classes", given.get("num_classes", 1000))
        known = fields_of(ImagePreprocessing, given)
        from_values(Sizes, {"num_classes": outputs, **arguments}, "model_args")
        preprocessing = from_values(ImagePreprocessing, known, "pretrained_cfg")
    except UserError as error:
        raise UserError(f"{config}: {str(error).rstrip('.')}; {REMEDY}.") from None
    return TimmModel(architecture, outputs, arguments, preprocessing, config, weights)


def _files(name: str) -> tuple[Path, Path]:
    """Return configuration and weights, fetched where they are missing in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if name.startswith(FOLDER):
        config, weights = (
            Path(name.removeprefix(FOLDER), file) for file in (CONFIG, WEIGHTS)
        )
        if config.is_file() and weights.is_file():
            return config, weights
    else:
        with contextlib.suppress(RemoteEntryNotFoundError):
            place = repo(name)
            config, weights = (
                Path(hf_hub_download(place, file)) for file in (CONFIG, WEIGHTS)
            )
            hashing.verify_blob(weights)
            return config, weights
    raise UserError(
        f"{name} lacks {CONFIG} or {WEIGHTS} of timm, or {CLIP_CONFIG} of open_clip, and weights "
        "of other formats are not loaded; name a model that has them."
    )


def repo(name: str) -> str:
    """Return the repo of the hub that has the weights of a model."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    import timm

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None or not cfg.hf_hub_id:
        near = suggestion(name, timm.list_models(pretrained=True))
        raise UserError(f"timm has no weights of an image encoder {name!r}; {near}")
    return str(cfg.hf_hub_id)
