"""Image encoders beside CLIP ("image_encoders"): networks of timm and image towers of open_clip.

The configuration of a network of timm is a stranger's. It may contain the sizes below and no code.
Weights are safetensors.
"""

import contextlib
import itertools
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file

from latteclip.clip import model as clips
from latteclip.clip.clip_config import (
    REMEDY,
    Mean,
    Spread,
    check_numbers,
    check_timm_name,
    fields_of,
    section,
)
from latteclip.config.registry import CLIP_CONFIG, FOLDER, HUB, OPEN_CLIP
from latteclip.core import devices
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import from_values, read_object
from latteclip.core.tables import EncoderMetadata
from latteclip.core.terminal import one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
Pixels = Annotated[int, Field(ge=8, le=4096)]
# Arguments of networks that a configuration may give (`model_args`). Others may name code.
ARGUMENTS = {
    *("img_size", "patch_size", "reg_tokens", "global_pool", "dynamic_img_size"),
    "init_values",
}
# Subfolder of a CLIP's folder, with a folder 0, 1, ... for each encoder.
SUBFOLDER = "image_encoders"


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


@dataclass
class ImageEncoder(clips.Clip):
    """An image encoder, which encodes images as a CLIP does and no texts."""

    name: str = ""
    timm: TimmModel | None = None  # its files; None for a tower of open_clip

    @property
    def width(self) -> int:
        return self.config["embed_dim"]  # type: ignore[no-any-return]


class Pooled(torch.nn.Module):
    """A network of timm under the name by which images are encoded."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] of images [B, 3, H, W]."""
        return self.network(images)  # type: ignore[no-any-return]


def load(name: str, device: torch.device, precision: str = "bf16") -> ImageEncoder:
    """Load an image encoder in float32, in evaluation mode.

    It is named as in timm, as `hf-hub:<repo>`, `local-dir:<folder>` or `open_clip:<model>/<tag>`.
    UserError: there is no such model, it is damaged, or it gives no features.
    """
    devices.check_precision(device, precision)
    with clips.loading(f"Image encoder {name!r}", "check image_encoders"):
        if names := open_clip_names(name):
            return ImageEncoder(
                **vars(clips.load(*names, device, precision)) | {"name": name}
            )
        import timm  # not at the top: it takes a second

        files = timm_model(name)
        network = Pooled(_network(files)).eval().to(device)
        clips.check_finite(name, network)
        values = vars(files.preprocessing)
        with torch.no_grad():
            image = torch.zeros(1, *values["input_size"], device=device)
            [_, width] = network.encode_image(image).shape  # no map of features
        return ImageEncoder(
            model=network,
            get_tokenizer=lambda: None,
            preprocess=timm.data.create_transform(**values, is_training=False),
            config={"embed_dim": width},
            device=device,
            precision=precision,
            name=name,
            timm=files,
        )


def _network(files: TimmModel) -> Any:
    import timm

    options = {**files.arguments, "pretrained": False, "num_classes": files.outputs}
    build = partial(timm.create_model, files.architecture, **options)
    clips.check_size(build, [files.weights])
    network: Any = build()
    network.load_state_dict(load_file(files.weights))
    network.reset_classifier(0)
    return network


def save(model: ImageEncoder, folder: Path) -> None:
    """Write a folder that `load` reads as `local-dir:<folder>`."""
    if model.timm is None:
        clips.save_network(model, folder)
        return
    folder.mkdir(parents=True)
    shutil.copyfile(model.timm.config, folder / CONFIG)
    shutil.copyfile(model.timm.weights, folder / WEIGHTS)


def load_beside(
    clip: Path, device: torch.device, precision: str = "bf16"
) -> list[ImageEncoder]:
    """Load the image encoders in the folder of a CLIP, in order (see `load`)."""
    folders = (clip / SUBFOLDER / str(number) for number in itertools.count())
    present = itertools.takewhile(Path.is_dir, folders)
    return [load(f"{FOLDER}{folder}", device, precision) for folder in present]


def metadata_of(model: ImageEncoder) -> EncoderMetadata:
    """Return what a table of features says of its model."""
    size = list(model.timm.preprocessing.input_size[1:]) if model.timm else None
    return EncoderMetadata(model.name, model.width, size)


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
    config, weights = _files(name)
    values = read_object(config, ["architecture"], REMEDY)
    try:
        check_timm_name(values["architecture"])
        given = section(values, "pretrained_cfg")
        arguments = section(values, "model_args")
        outputs: Any = values.get("num_classes", given.get("num_classes", 1000))
        check_numbers({"num_classes": outputs, **arguments})
        for name in arguments.keys() - ARGUMENTS:
            raise UserError(f"model_args.{one_line(name)} is refused.")
        known = fields_of(ImagePreprocessing, given)
        preprocessing = from_values(ImagePreprocessing, known, "pretrained_cfg")
    except UserError as error:
        raise UserError(f"{config}: {str(error).rstrip('.')}; {REMEDY}.") from None
    return TimmModel(
        values["architecture"], outputs, arguments, preprocessing, config, weights
    )


def _files(name: str) -> tuple[Path, Path]:
    """Return configuration and weights, fetched where they are missing in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with contextlib.suppress(RemoteEntryNotFoundError):
        place: Any = Path(name.removeprefix(FOLDER)).joinpath
        if not name.startswith(FOLDER):
            place = partial(hf_hub_download, repo(name))
        config, weights = Path(place(CONFIG)), Path(place(WEIGHTS))
        if config.is_file() and weights.is_file():
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
