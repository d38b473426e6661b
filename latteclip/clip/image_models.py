"""Image models beside CLIP ("eyes"): networks of timm and image towers of open_clip.

Letters: B batch, D width of the features.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from latteclip.clip import model as clips
from latteclip.config.hub_names import FOLDER
from latteclip.core import devices
from latteclip.core.errors import UserError, first_line
from latteclip.data.image_model_files import CONFIG, WEIGHTS, TimmModel, open_clip_names, timm_model

EYES = "eyes"  # folder of image models in that of a CLIP: 0, 1, ...


@dataclass
class ImageModel(clips.Clip):
    """An image model, which encodes images as a CLIP does and no texts."""

    name: str = ""
    timm: TimmModel | None = None  # its files; None for a tower of open_clip

    @property
    def width(self) -> int:
        """D."""
        width: int = self.config["embed_dim"]
        return width


class Pooled(torch.nn.Module):
    """A network of timm under the name by which images are encoded."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] of images [B, 3, H, W]."""
        features: torch.Tensor = self.network(images)
        return features


def load(name: str, device: torch.device, precision: str = "bf16") -> ImageModel:
    """Load an image model in float32, in evaluation mode.

    Args:
        name: a name of timm, `hf-hub:<repo>`, `local-dir:<folder>` or `open_clip:<model>/<tag>`.
        device: where the model is to live.
        precision: bf16, fp16 or float32, in which a GPU encodes.

    Raises:
        UserError: there is no such model, it is damaged, or it gives no features.
    """
    devices.check_precision(device, precision)
    try:
        names = open_clip_names(name)
        files = None if names else timm_model(name)
        if files is not None:
            network, preprocess = Pooled(_network(files)).eval().to(device), _transform(files)
            clips.check_finite(name, network)
            config = {"embed_dim": _width(network, files, device)}
            return ImageModel(
                network, _no_texts, preprocess, config, device, precision, name=name, timm=files
            )
    except UserError as error:
        raise UserError(f"Image model {name!r} cannot be loaded: {error}") from error
    except Exception as error:  # timm and the libraries below it raise errors of every kind
        raise UserError(
            f"Image model {name!r} cannot be loaded ({first_line(error).rstrip('.')}); check eyes."
        ) from error
    assert names is not None
    clip = clips.load(*names, device, precision)
    return ImageModel(**{**vars(clip), "name": name})


def _no_texts() -> Any:
    raise UserError("An image model beside CLIP reads no texts.")


def _network(files: TimmModel) -> torch.nn.Module:
    """Return a network with its weights, without its classifier.

    The network is built without memory first, so that no configuration can ask for more numbers
    than the weights contain.
    """
    import timm

    def build() -> Any:
        return timm.create_model(
            files.architecture, pretrained=False, num_classes=files.outputs, **files.arguments
        )

    with torch.device("meta"):
        numbers = sum(tensor.numel() for tensor in build().state_dict().values())
    size = files.weights.stat().st_size
    if numbers > size:
        raise UserError(f"its network has {numbers} numbers, and its weights have {size} bytes.")
    network = build()
    try:
        missing, strange = network.load_state_dict(load_file(files.weights), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{files.weights} does not fit the network {files.architecture} "
            f"({first_line(error).rstrip('.')})."
        ) from None
    if missing or strange:
        raise UserError(
            f"{files.weights} does not fit the network {files.architecture}: "
            f"{[*missing, *strange][0]} is missing or too much."
        )
    network.reset_classifier(0)
    return network  # type: ignore[no-any-return]


def _transform(files: TimmModel) -> clips.Transform:
    """Return the transform of images for evaluation."""
    from timm.data import create_transform

    transform: clips.Transform = create_transform(**vars(files.preprocessing), is_training=False)
    return transform


@torch.no_grad()
def _width(network: Pooled, files: TimmModel, device: torch.device) -> int:
    """Return the width of the features, by those of a blank image."""
    found = network.encode_image(torch.zeros(1, *files.preprocessing.input_size, device=device))
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or not found.shape[1]:
        raise UserError(f"{files.architecture} gives no feature vector for an image.")
    return found.shape[1]


def save(model: ImageModel, folder: Path) -> None:
    """Write a folder that `load` reads as `local-dir:<folder>`."""
    if model.timm is None:
        clips.save_network(model, folder)
        return
    folder.mkdir(parents=True)
    shutil.copyfile(model.timm.config, folder / CONFIG)
    shutil.copyfile(model.timm.weights, folder / WEIGHTS)


def load_beside(clip: Path, device: torch.device, precision: str = "bf16") -> list[ImageModel]:
    """Load the image models in the folder of a CLIP, in order.

    Raises:
        UserError: a model is damaged.
    """
    folders = sorted((clip / EYES).glob("[0-9]*"), key=lambda folder: int(folder.name))
    return [load(f"{FOLDER}{folder}", device, precision) for folder in folders]


def described(model: ImageModel) -> dict[str, Any]:
    """Return what a table of features says of its model."""
    size = model.timm.preprocessing.input_size[1:] if model.timm else None
    return {"model": model.name, "width": model.width} | ({"image_size": size} if size else {})
