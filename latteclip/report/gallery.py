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
from latteclip.core.tables import UnknownMetadata
from latteclip.data.images import open_rgb
from latteclip.report.runs import Ints, TrainingImages

QUALITY = 75
# Longer side in pixels.
PICTURE = 320  # of a picture of the gallery
THUMBNAIL = 112
EXAMPLES = 12  # pictures
UNKNOWN = 24


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


def picture_of(path: str, side: int) -> Picture:
    """Encode an image file."""
    return picture(open_rgb(path, max_side=side), side)


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


def fused_labels(path: str, train: TrainingImages) -> Ints:
    """Return the fused labels of the training images [N]."""
    ids = train.image_ids.column
    labels = tables.lookup_column(path, tables.FUSED_LABELS, "image_id", "fused_label", ids)
    return np.asarray(labels.to_numpy())


def read_captions(
    path: str, train: TrainingImages, chosen: Sequence[int]
) -> dict[int, str]:
    """Return the caption of each chosen training image, None without one."""
    table = tables.read(path, tables.CAPTIONS, ["id", "caption"])
    names = pa.array([train.image_ids[i] for i in chosen], pa.string())
    captions = table["caption"].take(pc.index_in(names, table["id"]))
    return dict(zip(chosen, captions.to_pylist(), strict=True))


def read_unknown(path: str, images: str, pseudo_labels: str) -> dict[str, Any]:
    """Return the images that most likely show none of the classes."""
    table = tables.read(path, tables.UNKNOWN)
    answers = tables.read_metadata(path, UnknownMetadata).answers or {}
    by_clip, by_captioner = (table[n].to_numpy() for n in ("score", "captioner_score"))
    # Images with a captioner's score, which is not NaN, come first.
    best = np.lexsort((-by_clip, -by_captioner))[:UNKNOWN]
    ids = table["image_id"].take(best)
    paths = tables.lookup_column(images, tables.IMAGES, "image_id", "path", ids)
    labels = tables.lookup_column(
        pseudo_labels, tables.PSEUDO_LABELS, "image_id", "pseudo_label", ids
    )
    columns = (ids.to_pylist(), paths.to_pylist(), labels.to_pylist(), by_clip[best])
    return {
        "answered": sum(answers.values()),
        "marked": pc.sum(table["is_unknown"]).as_py() or 0,
        "images": len(table),
        "scored": int((~np.isnan(by_captioner)).sum()),
        "likeliest": [
            {
                "image_id": image_id,
                "picture": picture_of(path, THUMBNAIL),
                "pseudo_label": label,
                "score": score,
            }
            for image_id, path, label, score in zip(*columns, strict=True)
        ],
    }
