"""Which names of models stand for what the Hugging Face hub has, and what a note on one is called.

Imports nothing heavy: the workflow asks while it reads its configuration.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

HUB, FOLDER = WHOLE = "hf-hub:", "local-dir:"  # of open_clip: architecture and weights in one
CLIP_CONFIG = "open_clip_config.json"  # of a model's folder
TEXT_TOWER = "text_tower"  # folder in it: configuration of a text tower of transformers
ENGINES = ("vllm", "transformers")  # that load a captioner themselves

# Names of captioners that look at each picture as a whole in a square of OVERVIEW pixels, and at
# tiles of it besides.
LLAVA_NEXT = re.compile(r"llava-(v?1\.6|next)", re.IGNORECASE)
OVERVIEW = 336

# What tells a model apart: the keys of its section that name it.
Names = dict[str, str | None]


def is_folder(model: str) -> bool:
    """Whether a captioner's model is a folder, or was meant to be one, and no id of the hub."""
    return os.path.isdir(model) or model.startswith((".", "/")) or model.count("/") > 1


def hub_clip(values: Mapping[str, Any]) -> Names | None:
    """The names of a CLIP of the hub, from section `clip`; None for a folder or weights file."""
    model, pretrained = values["model"], values["pretrained"]
    if model.startswith(FOLDER):
        return None
    if model.startswith(HUB):
        return {"model": model, "pretrained": None}
    if not pretrained or "/" in pretrained or os.path.isfile(pretrained):
        return None
    return {"model": model.replace("/", "-"), "pretrained": pretrained}  # ViT-B/32 is ViT-B-32


def hub_captioner(values: Mapping[str, Any]) -> Names | None:
    """The names of a captioner of the hub, from section `captioner`; None where none is loaded."""
    if values["engine"] not in ENGINES or is_folder(values["model"]):
        return None
    return {"model": values["model"], "revision": values["revision"]}


def overview_side(model: str) -> int | None:
    """Return the side of the square in which a captioner sees a picture; None for other models."""
    return OVERVIEW if LLAVA_NEXT.search(model) else None


def slug(names: Names) -> str:
    """Names as part of a file's name: letters, digits and `.-_~=@`, others for other names."""
    parts = [quote(name, safe="") for name in names.values() if name]
    return "@".join(parts).replace("%2F", "--").replace("%3A", "--").replace("%", "=")
