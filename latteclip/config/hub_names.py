"""Tell models of the Hugging Face hub from files, and name the notes on them."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latteclip.config.keys import CaptionerSection, ClipSection

HUB = "hf-hub:"
FOLDER = "local-dir:"
# Prefixes of open_clip's names that give architecture and weights in one.
WHOLE = (HUB, FOLDER)
# Prefix of a CLIP that one key names, with architecture and weights: <model>/<pretrained>.
OPEN_CLIP = "open_clip:"
CLIP_CONFIG = "open_clip_config.json"  # file in a model's folder
TEXT_TOWER = "text_tower"  # folder in it: configuration of a text tower of transformers

# The keys of a section that name its model.
Names = dict[str, str | None]


@dataclass(frozen=True)
class Model:
    """A model of the hub, by the keys that name it, or of a folder or file on this machine."""

    kind: str  # a key of `download_models.KEYS`
    names: Names | None = None
    path: str | None = None

    @property
    def settings(self) -> Names:
        """The settings of download_model."""
        return {"kind": self.kind, **(self.names or {})}


def clip(section: "ClipSection") -> Model:
    """Return a CLIP by its section."""
    model, pretrained = section.model, section.pretrained
    if model.startswith(FOLDER):
        return Model("clip", path=local_folder(model))
    if model.startswith(HUB):
        return Model("clip", {"model": model, "pretrained": None})
    if pretrained and os.path.isfile(pretrained):
        return Model("clip", path=pretrained)
    # ViT-B/32 is ViT-B-32.
    return Model("clip", {"model": model.replace("/", "-"), "pretrained": pretrained})


def captioner(section: "CaptionerSection") -> Model:
    """Return a captioner by its section."""
    model = section.model
    if os.path.isdir(model):
        return Model("captioner", path=model)
    return Model("captioner", {"model": model, "revision": section.revision})


def encoders(names: Iterable[str]) -> list[Model]:
    """Return image encoders beside CLIP by their names."""
    paths = {name: local_folder(name) for name in names}
    return [
        Model("image_encoder", None if path else {"model": name}, path)
        for name, path in paths.items()
    ]


def local_folder(name: str) -> str | None:
    """Return the folder that the name of a network gives; None: it is not in a folder."""
    return name.removeprefix(FOLDER) if name.startswith(FOLDER) else None


def slug(names: Names) -> str:
    """Return names as a part of a file's name."""
    return "@".join(re.sub(r"[^\w.-]+", "--", name) for name in names.values() if name)
