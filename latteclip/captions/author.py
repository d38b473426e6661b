"""Who wrote the captions of a table: a model, or the user."""

from collections.abc import Mapping
from typing import Any


def own_file(metadata: Mapping[str, Any]) -> str | None:
    """Return the user's file that the captions of a CAPTIONS table are from; None: a model's."""
    captioner = metadata.get("captioner", {})
    if captioner.get("engine") != "file":
        return None
    return str(captioner["groups_file" if "groups" in metadata else "images_file"])


def model(metadata: Mapping[str, Any]) -> str | None:
    """Return the model that wrote the captions of a CAPTIONS table; None: the user did."""
    return None if own_file(metadata) else metadata.get("captioner", {}).get("model")
