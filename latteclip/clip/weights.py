"""Pretrained weights: whether they are those that were meant, and fit their network."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latteclip.config.model_names import FOLDER, HUB
from latteclip.core import checksums
from latteclip.core.errors import UserError
from latteclip.core.lazily import open_clip
from latteclip.core.settings import from_values
from latteclip.data import clip_config

log = logging.getLogger(__name__)
REMEDY = (
    "delete it and rerun its stage, or take another copy; if it was changed on purpose, delete "
    f"{checksums.SUMS}"
)


def verify_folder(folder: Path) -> None:
    """Compare a model folder with its sums, where it has some.

    Raises:
        UserError: a file is missing or damaged.
    """
    unnamed = checksums.verify(folder, REMEDY)
    if unnamed:
        log.warning("%s: %s does not name %s.", folder, checksums.SUMS, ", ".join(unnamed))


def verify_cached(model: str, pretrained: str | None) -> None:
    """Compare weights of the hub with their name in its cache, which is their SHA-256.

    Raises:
        UserError: they are damaged.
    """
    if model.startswith(HUB):
        path = clip_config.hub_weights(model)
    elif tag := open_clip.get_pretrained_cfg(model, pretrained or ""):
        path = Path(open_clip.download_pretrained(tag))
    else:
        return
    checksums.verify_name(path)


def check_size(model: str, config: dict[str, Any], told: dict[str, Any]) -> None:
    """Raise UserError where a network of a stranger has more numbers than its files can hold.

    It is built without memory for them, so that no configuration can ask for all there is; not
    where it is plainly small enough, for even that takes torch a second.

    Args:
        model: `hf-hub:<repo>` or `local-dir:<folder>`.
        config: the section `model_cfg` of it.
        told: what open_clip is told besides.
    """
    if model.startswith(FOLDER):
        files = [path for path in Path(model.removeprefix(FOLDER)).iterdir() if path.is_file()]
    else:
        files = [clip_config.hub_weights(model)]
    size = sum(path.stat().st_size for path in files)
    if _at_most(config) <= size:  # each takes at least a byte
        return
    with torch.device("meta"), _quiet():
        network = open_clip.create_model(
            model, load_weights=False, device="meta", pretrained_text=False, **told
        )
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    if numbers > size:
        raise UserError(
            f"its network has {numbers} numbers, and its files have {size} bytes; "
            f"{clip_config.remedy(model)}."
        )


def _at_most(config: dict[str, Any]) -> float:
    """More numbers than two plain transformers have; infinity for other towers."""
    checked = from_values(clip_config.ClipConfig, config, "model_cfg")
    image, text = checked.vision_cfg, checked.text_cfg
    others = (
        image.timm_model_name,
        image.attentional_pool,
        text.hf_model_name,
        checked.multimodal_cfg,
    )
    if any(others) or isinstance(image.layers, list) or not image.patch_size:
        return math.inf
    side = max(image.image_size) if isinstance(image.image_size, list) else image.image_size
    patch = image.patch_size
    of_image = _of_tower(image, (side // patch) ** 2 + 3 * patch**2 + checked.embed_dim)
    of_text = _of_tower(text, text.vocab_size + text.context_length + checked.embed_dim)
    return 2 * (of_image + of_text)


def _of_tower(tower: clip_config.VisionTower | clip_config.TextTower, rows: int) -> float:
    """Numbers of a transformer with so many rows of embeddings, without biases and norms."""
    assert isinstance(tower.layers, int)
    return tower.width * (rows + tower.layers * tower.width * (4 + 2 * tower.mlp_ratio))


def check_finite(model: str, network: torch.nn.Module) -> None:
    """Raise UserError where a weight is not a finite number."""
    for name, tensor in network.state_dict().items():
        is_number = tensor.is_floating_point() and tensor.numel()
        # Of NaN both extremes are NaN; asking each number apart takes fifteen times as long.
        if is_number and not all(extreme.isfinite() for extreme in tensor.aminmax()):
            raise UserError(
                f"The weights {name} of CLIP model {model!r} are not finite numbers: the file is "
                "damaged, or its training failed; take another copy, or train anew."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, here that there are no weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
