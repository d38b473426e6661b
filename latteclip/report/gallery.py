"""Pictures of a dataset's page as small WebP files inside it, with what is known of them."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.core import tables
from latteclip.core.metadata import UnknownMetadata
from latteclip.data.images import open_rgb
from latteclip.report.runs import Ints, SplitReport

QUALITY = 75
# Longer side in pixels.
PICTURE = 320  # of a picture of the gallery
THUMBNAIL = 112
EXAMPLES = 12  # pictures
UNKNOWN = 24
ROWS = 100_000  # of a table that are read at a time: there may be millions of captions


class Picture(NamedTuple):
    """A picture as an <img> wants it."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image, side: int) -> Picture:
    """Encode an RGB picture, its longer side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=4)
    encoded = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/webp;base64,{encoded}", small.width, small.height)


def picture_of(split: SplitReport, i: int, side: int) -> Picture:
    """Encode image i of a split."""
    return picture(open_rgb(split.paths[i], max_side=side), side)


def choose_examples(
    confidence: npt.NDArray[np.floating], pseudo_labels: npt.NDArray[np.integer]
) -> list[int]:
    """Choose images from the most to the least confident, of other classes if possible."""
    order = np.argsort(-confidence, kind="stable")
    chosen: list[int] = []
    for part in np.array_split(order, min(EXAMPLES, len(order))):
        new = part[~np.isin(pseudo_labels[part], pseudo_labels[chosen])]
        chosen.append(int(new[0] if len(new) else part[0]))
    return chosen


def fused_labels(path: str, train: SplitReport) -> Ints:
    """Return the fused labels of the training images [N]."""
    table = tables.read(path, tables.FUSED_LABELS, ["image_id", "fused_label"])
    rows = tables.find_rows(train.image_ids.column, table["image_id"], path)
    return np.asarray(table["fused_label"].take(rows).to_numpy())


def read_captions(path: str, train: SplitReport, chosen: Sequence[int]) -> dict[int, str]:
    """Return the caption of each chosen training image, or of a group with it.

    Without one it is the caption of a group of the image's pseudo-label.
    """
    numbers = {train.image_ids[i]: i for i in chosen}
    captions: dict[int, str] = {}
    of_label: dict[int, str] = {}
    for piece in tables.read_pieces(path, tables.CAPTIONS, ["members", "caption"], ROWS):
        first = train.places(pc.list_element(piece["members"], 0))
        labels = train.pseudo_labels[first].tolist()
        for row, label in zip(piece.to_pylist(), labels, strict=True):
            if len(row["members"]) > 1:
                of_label.setdefault(label, row["caption"])
            for name in numbers.keys() & row["members"]:
                captions.setdefault(numbers[name], row["caption"])
    likely = {i: int(train.pseudo_labels[i]) for i in chosen}
    return {i: of_label[n] for i, n in likely.items() if n in of_label} | captions


def read_unknown(path: str, splits: Sequence[SplitReport]) -> dict[str, Any]:
    """Return the images of some splits that most likely show none of the classes."""
    table = tables.read(path, tables.UNKNOWN)
    answers = tables.read_metadata(path, UnknownMetadata).answers or {}
    by_clip, by_captioner = (table[n].to_numpy() for n in ("score", "captioner_score"))
    # Images with a captioner's score, which is not NaN, come first.
    best = np.lexsort((-by_clip, -by_captioner))[:UNKNOWN]
    places = _find(table["image_id"].take(best), splits)
    return {
        "answered": sum(answers.values()),
        "marked": pc.sum(table["is_unknown"]).as_py() or 0,
        "images": len(table),
        "scored": int((~np.isnan(by_captioner)).sum()),
        "likeliest": [
            {
                "image_id": split.image_ids[i],
                "picture": picture_of(split, i, THUMBNAIL),
                "pseudo_label": int(split.pseudo_labels[i]),
                "score": score,
            }
            for (split, i), score in zip(places, by_clip[best].tolist(), strict=True)
        ],
    }


def _find(
    image_ids: pa.ChunkedArray, splits: Sequence[SplitReport]
) -> list[tuple[SplitReport, int]]:
    """Return the split that each image is in, and its position there."""
    places = np.transpose([split.places(image_ids) for split in splits])  # [n, splits]
    located = []
    for rows in places.tolist():
        in_splits = zip(splits, rows, strict=True)
        located.append(next((split, i) for split, i in in_splits if i >= 0))
    return located
