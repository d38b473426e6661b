"""Pictures of a dataset's page as small WebP files inside it, with what is known of them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.core import tables
from latteclip.core.tables import IndexMetadata, UnknownMetadata
from latteclip.data.images import open_rgb

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.floating]
QUALITY = 75
# Longer side in pixels.
PICTURE = 320  # of a picture of the gallery
THUMBNAIL = 112
EXAMPLES = 12  # pictures
UNKNOWN = 24


@dataclass(frozen=True)
class TrainingImages:
    """The N training images, in the order of the index, with their labels."""

    image_ids: tables.Strings
    paths: tables.Strings
    truth: Ints | None  # [N] true labels, None where any is unknown
    zero_shot: Ints  # [N]
    fused: Ints | None  # [N]
    confidence: Floats  # [N] of the fused label, or else of the zero-shot label

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def labels(self) -> Ints:
        """The label [N] of each image."""
        return self.zero_shot if self.fused is None else self.fused

    @property
    def share_right(self) -> float | None:
        """The share of fused labels that are the true ones, None where either is unknown."""
        if self.fused is None or self.truth is None:
            return None
        return float((self.fused == self.truth).mean())


def read_training(
    images: str, pseudo_labels: str, fused_labels: str | None
) -> tuple[TrainingImages, int, list[str]]:
    """Read the training images of an index, the number of test images, and the class names."""
    index = tables.read(images, tables.IMAGES, ["image_id", "path", "split", "label"])
    classnames = tables.read_metadata(images, IndexMetadata).classnames
    table = index.filter(pc.not_equal(index["split"], "test"))
    ids = table["image_id"]

    def column(path: str, schema: pa.Schema, name: str) -> npt.NDArray[Any]:
        values = tables.lookup_column(path, schema, "image_id", name, ids)
        return np.asarray(values.to_numpy())

    fused = None
    if fused_labels:
        fused = column(fused_labels, tables.FUSED_LABELS, "fused_label")
        confidence = column(fused_labels, tables.FUSED_LABELS, "fused_confidence")
    else:
        confidence = column(pseudo_labels, tables.PSEUDO_LABELS, "confidence")
    truth = table["label"]
    train = TrainingImages(
        tables.Strings(ids),
        tables.Strings(table["path"]),
        None if truth.null_count or not len(truth) else truth.to_numpy(),
        column(pseudo_labels, tables.PSEUDO_LABELS, "pseudo_label"),
        fused,
        confidence,
    )
    return train, len(index) - len(table), classnames


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


def choose_examples(train: TrainingImages) -> list[int]:
    """Choose images from the most to the least confident label, of other classes if possible."""
    order = np.argsort(-train.confidence, kind="stable")
    chosen: list[int] = []
    for part in np.array_split(order, min(EXAMPLES, len(order))):
        new = part[~np.isin(train.labels[part], train.labels[chosen])]
        chosen.append(int(new[0] if len(new) else part[0]))
    return chosen


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
