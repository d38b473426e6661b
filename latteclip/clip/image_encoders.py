"""Image encoders beside CLIP ("image_encoders"): networks of timm and image towers of open_clip."""

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from latteclip.clip import model as clips
from latteclip.clip.image_encoder_files import (
    CONFIG,
    WEIGHTS,
    TimmModel,
    open_clip_names,
    timm_model,
)
from latteclip.config.hub_names import FOLDER
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.metadata import EncoderMetadata

# Subfolder of a CLIP's folder, with a folder 0, 1, ... for each encoder.
SUBFOLDER = "image_encoders"


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
        config = {"embed_dim": _width(network, files, device)}
        values = vars(files.preprocessing) | {"is_training": False}
        values["input_size"] = tuple(values["input_size"])
        transform = timm.data.create_transform(**values)
        return ImageEncoder(
            model=network,
            get_tokenizer=lambda: None,
            preprocess=transform,
            config=config,
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


@torch.no_grad()
def _width(network: Pooled, files: TimmModel, device: torch.device) -> int:
    features = network.encode_image(
        torch.zeros(1, *files.preprocessing.input_size, device=device)
    )
    if (
        not isinstance(features, torch.Tensor)
        or features.ndim != 2
        or not features.shape[1]
    ):
        raise UserError(f"{files.architecture} gives no feature vector for an image.")
    return features.shape[1]


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
    names = (folder.name for folder in (clip / SUBFOLDER).glob("[0-9]*"))
    numbers = sorted(int(name) for name in names if re.fullmatch("[0-9]+", name))
    folders = [clip / SUBFOLDER / str(number) for number in numbers]
    return [load(f"{FOLDER}{folder}", device, precision) for folder in folders]


def metadata_of(model: ImageEncoder) -> EncoderMetadata:
    """Return what a table of features says of its model."""
    size = list(model.timm.preprocessing.input_size[1:]) if model.timm else None
    return EncoderMetadata(model.name, model.width, size)
