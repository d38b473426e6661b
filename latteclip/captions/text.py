"""Texts of captions: mentions of classes, and who wrote them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def count_mentions(texts: pa.ChunkedArray, classnames: Sequence[str]) -> int:
    """Return how many texts have any of the class names as whole words, in any case."""
    names, no_letter = "|".join(map(re.escape, classnames)), r"[^\pL\pN_]"
    pattern = f"(?:^|{no_letter})(?:{names})(?:{no_letter}|$)"
    return int(pc.sum(pc.match_substring_regex(texts, pattern, ignore_case=True)).as_py() or 0)


def user_file_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the user's file that a CAPTIONS table was made from; None: a model wrote it."""
    captioner = metadata.get("captioner", {})
    if captioner.get("engine") != "file":
        return None
    return str(captioner["groups_file" if "groups" in metadata else "images_file"])


def model_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the model that wrote the captions of a CAPTIONS table; None: the user did."""
    return None if user_file_of(metadata) else metadata.get("captioner", {}).get("model")
