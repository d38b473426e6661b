"""Files of image models beside CLIP: where they are, and what their configuration may contain.

A configuration is a stranger's. It names a network of timm, and may contain the sizes below and no
code. Weights are safetensors.
"""

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latteclip.config.hub_names import CLIP_CONFIG, FOLDER, HUB, OPEN_CLIP
from latteclip.core import hashing
from latteclip.core.errors import UserError
from latteclip.core.files import read_object
from latteclip.core.settings import from_values

CONFIG, WEIGHTS = "config.json", "model.safetensors"
REMEDY = "take another copy of the model, or another model"
MAX_SIDE = 4096  # pixels
MAX_OUTPUTS = 10**6
# Keys of `model_args` that set sizes. Others may name files or code.
SIZES = ("img_size", "global_pool", "dynamic_img_size", "reg_tokens", "patch_size", "init_values")
# Keys of `pretrained_cfg` that are used.
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class ImagePreprocessing:
    """How images become the input of a network."""

    input_size: list[int] = field(default_factory=lambda: [3, 224, 224])
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash", "border"] = "center"


@dataclass(frozen=True)
class TimmModel:
    """A network of timm with its files."""

    architecture: str
    outputs: int  # classes of its weights, 0 without a classifier
    arguments: dict[str, Any]  # of the network
    preprocessing: ImagePreprocessing
    config: Path
    weights: Path


def open_clip_names(name: str) -> tuple[str, str | None] | None:
    """Return model and pretrained of an image model that open_clip loads, None for one of timm.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the hub does not give the repo.
        OSError: the same.
    """
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

    Files of the hub are fetched where they are not in its cache.

    Raises:
        UserError: there is no such model, it has no safetensors, or its configuration contains what
            it may not.
        huggingface_hub.errors.HfHubHTTPError: the hub does not give the files.
        OSError: the same.
    """
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        config, weights = folder / CONFIG, folder / WEIGHTS
        for path in (config, weights):
            if not path.is_file():
                raise UserError(
                    f"{folder} has no {path.name}, so it is no folder of an image model; it has "
                    f"{CONFIG} and {WEIGHTS} of timm, or {CLIP_CONFIG} of open_clip."
                )
    else:
        config, weights = _from_hub(repo(name))
        hashing.verify_blob(weights)
    return _checked(config, weights)


def repo(name: str) -> str:
    """Return the repo of the hub that has the weights of a model."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    import timm

    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None or not found.hf_hub_id:
        near = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=1)
        advice = f"did you mean {near[0]}?" if near else "timm.list_pretrained() has all names."
        raise UserError(f"timm has no weights of an image model {name!r}; {advice}")
    return str(found.hf_hub_id)


def _from_hub(repo: str) -> tuple[Path, Path]:
    """Return configuration and weights in the hub's cache, fetched where they are missing."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    config = Path(hf_hub_download(repo, CONFIG))
    try:
        return config, Path(hf_hub_download(repo, WEIGHTS))
    except RemoteEntryNotFoundError:
        raise UserError(
            f"{repo} has no {WEIGHTS}, and weights of other formats are not loaded; name a model "
            "that has it."
        ) from None


def _checked(config: Path, weights: Path) -> TimmModel:
    """Return a network after checks of its configuration."""
    import timm

    values = read_object(config, [], REMEDY)
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(
            f"{config} names no network of timm (architecture), so it is no image model whose "
            f"features can be used; name a model of timm or open_clip."
        )
    given = values.get("pretrained_cfg", {})
    arguments = values.get("model_args") or {}
    if not isinstance(given, dict) or not isinstance(arguments, dict):
        raise UserError(f"{config}: pretrained_cfg and model_args must be objects; {REMEDY}.")
    if strange := [key for key in arguments if key not in SIZES]:
        raise UserError(f"{config}: model_args.{strange[0]} is not supported; {REMEDY}.")
    known = {key: given[key] for key in PREPROCESSING if given.get(key) is not None}
    try:
        preprocessing = from_values(ImagePreprocessing, known, "pretrained_cfg")
    except UserError as error:
        raise UserError(f"{config}: {str(error).rstrip('.')}; {REMEDY}.") from None
    outputs: Any = values.get("num_classes", given.get("num_classes", 1000))
    sizes = [*preprocessing.input_size, *_numbers(arguments)]
    means = [*preprocessing.mean, *preprocessing.std, preprocessing.crop_pct]
    fit = (
        isinstance(outputs, int)
        and 0 <= outputs <= MAX_OUTPUTS
        and len(preprocessing.input_size) == len(preprocessing.mean) == len(preprocessing.std) == 3
        and preprocessing.input_size[0] == 3
        and all(0 <= size <= MAX_SIDE for size in sizes)
        and min(preprocessing.input_size) > 0
        and all(map(math.isfinite, means))
        and min(*preprocessing.std, preprocessing.crop_pct) > 0
    )
    if not fit:
        raise UserError(f"{config} has sizes that no image model has; {REMEDY}.")
    return TimmModel(architecture, outputs, arguments, preprocessing, config, weights)


def _numbers(value: Any) -> list[float]:
    """Return the numbers in lists and objects."""
    if isinstance(value, bool) or not isinstance(value, dict | list | int | float):
        return []
    if isinstance(value, int | float):
        return [value]
    return [
        number
        for inner in (value.values() if isinstance(value, dict) else value)
        for number in _numbers(inner)
    ]
