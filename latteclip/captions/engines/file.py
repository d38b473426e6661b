"""Captions that the user brings along, in place of an engine's answers."""

from collections.abc import Mapping

import pandas as pd

from latteclip.captions.engine import Response
from latteclip.core.user_tables import read_table, rows_of


def read_captions(path: str | None, key: str) -> Mapping[str, Response]:
    """Return captions by image_id, with single spaces, from the columns image_id and caption."""
    captions = {}
    columns = ["image_id", "caption"]
    for image_id, caption in rows_of(read_table(path, key), path, key, columns):
        words = [] if pd.isna(caption) else str(caption).split()
        captions[image_id] = Response(" ".join(words), "stop", None)
    return captions
