"""Tell models of the Hugging Face hub from files, and name the notes on them."""

import os
from urllib.parse import quote

from latteclip.config.keys import CaptionerSection, ClipSection
from latteclip.core.hashing import digest

HUB = "hf-hub:"
FOLDER = "local-dir:"
WHOLE = (
    HUB,
    FOLDER,
)  # prefixes of open_clip's names that give architecture and weights in one
# Prefix of an image tower in image_encoders, named <model>/<pretrained>.
OPEN_CLIP = "open_clip:"
CLIP_CONFIG = "open_clip_config.json"  # file in a model's folder
TEXT_TOWER = "text_tower"  # folder in it: configuration of a text tower of transformers
MAX_SLUG = 120  # characters: a file's name may have 255, and temporary ones are longer

# The keys of a section that name its model.
Names = dict[str, str | None]


def is_folder(model: str) -> bool:
    """Return whether a captioner's model is or looks like a folder, and not an id of the hub."""
    return os.path.isdir(model) or model.startswith((".", "/")) or model.count("/") > 1


def hub_clip(clip: ClipSection) -> Names | None:
    """Return the names of a CLIP of the hub; None for a folder or file."""
    model, pretrained = clip.model, clip.pretrained
    if model.startswith(FOLDER):
        return None
    if model.startswith(HUB):
        return {"model": model, "pretrained": None}
    if not pretrained or "/" in pretrained or os.path.isfile(pretrained):
        return None
    # ViT-B/32 is ViT-B-32.
    return {"model": model.replace("/", "-"), "pretrained": pretrained}


def local_folder(name: str) -> str | None:
    """Return the folder that the name of a network gives; None: it is not in a folder."""
    return name.removeprefix(FOLDER) if name.startswith(FOLDER) else None


def local_clip(clip: ClipSection) -> str | None:
    """Return the folder or the file of weights of a CLIP; None for one of the hub."""
    model, pretrained = clip.model, clip.pretrained
    if model.startswith(FOLDER):
        return local_folder(model)
    is_file = not model.startswith(HUB) and pretrained and os.path.isfile(pretrained)
    return str(pretrained) if is_file else None


def hub_captioner(captioner: CaptionerSection) -> Names | None:
    """Return the names of a captioner of the hub, or None."""
    if is_folder(captioner.model):
        return None
    return {"model": captioner.model, "revision": captioner.revision}


def slug(names: Names) -> str:
    """Return names as a part of a file's name, unique, of letters, digits and `.-_~=@`."""
    parts = [quote(name, safe="") for name in names.values() if name]
    joined = "@".join(parts).replace("%2F", "--").replace("%3A", "--").replace("%", "=")
    if len(joined) <= MAX_SLUG:
        return joined
    return f"{joined[: MAX_SLUG - 17]}-{digest(joined)[:16]}"
