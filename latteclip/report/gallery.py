"""Pictures of a dataset's page as small WebP files inside it, with what is known of them."""

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.tables import IndexMetadata, UnknownMetadata
from latteclip.data.images import open_rgb
from latteclip.labels.votes import Ints

QUALITY = 75
# Longer side in pixels.
PICTURE = 192  # of a picture of the gallery
THUMBNAIL = 112
# Pictures.
SIDE = 3  # the surest of a class, and the most doubtful ones beside them
CLASSES = 24  # classes that have pictures
DIFFERING = 12  # where labels and zero-shot differ
UNKNOWN = 24
Item = dict[str, Any]


@dataclass(frozen=True)
class ClassPictures:
    """A class with its surest and its most doubtful training images, by their labels."""

    name: str
    images: int  # that have this label
    surest: list[Item]
    doubtful: list[Item]


@dataclass(frozen=True)
class Gallery:
    """Some training images of a dataset, and what is known of all."""

    n_train: int
    n_test: int
    classnames: list[str]
    has_truth: bool  # whether the labels of the training images are known
    source: str  # what the labels are
    classes: list[ClassPictures]  # from the least to the most certain one
    n_differing: int  # whose label is not that of zero-shot
    differing: list[Item]  # the surest of these


def read_gallery(
    images: str,
    pseudo_labels: str,
    fused_labels: str | None,
    captions: str | None,
    answered: Collection[str],
) -> Gallery:
    """Read what the page shows of training images, but those that a person has answered about."""
    index = tables.read(images, ["image_id", "path", "split", "classname"])
    described = tables.read_metadata(images, IndexMetadata)
    classnames = described.as_written(described.classnames)
    train = index.filter(pc.not_equal(index["split"], "test"))
    ids = train["image_id"]
    path, label, confidence = pseudo_labels, "pseudo_label", "confidence"
    source = "zero-shot label"
    if fused_labels:
        path, label, confidence = fused_labels, "fused_label", "fused_confidence"
        source = "fused label"
    labels = tables.lookup_column(path, label, ids).to_numpy()
    shares = tables.lookup_column(path, confidence, ids).to_numpy()
    zero_shot = tables.lookup_column(pseudo_labels, "pseudo_label", ids).to_numpy()
    names = np.array(classnames, dtype=object)
    captioned = tables.read(captions, ["id", "caption"]) if captions else None

    def items(rows: Ints) -> list[Item]:
        some = train.take(rows)
        columns = {
            "image_id": some["image_id"],
            "path": some["path"],
            "truth": some["classname"],
            "label": names[labels[rows]],
            "zero_shot": names[zero_shot[rows]],
            "confidence": shares[rows],
        }
        if captioned is not None:
            places = pc.index_in(some["image_id"], captioned["id"])
            columns["caption"] = captioned["caption"].take(places)
        found: list[Item] = pa.table(columns).to_pylist()
        for item in found:
            item["picture"] = picture(item["path"], PICTURE)
            if item["truth"] is not None:
                [item["truth"]] = described.as_written([item["truth"]])
        return found

    seen = pc.is_in(ids, pa.array(answered, pa.string())).to_numpy()
    order = np.argsort(-shares, kind="stable")
    order = order[~seen[order]]
    of_class = {
        number: order[labels[order] == number] for number in set(labels[order])
    }
    doubts = {number: shares[rows].mean() for number, rows in of_class.items()}
    shown = sorted(of_class, key=lambda number: (doubts[number], number))[:CLASSES]
    differing = order[(labels != zero_shot)[order]]
    return Gallery(
        n_train=len(train),
        n_test=len(index) - len(train),
        classnames=classnames,
        has_truth=not train["classname"].null_count,
        source=source,
        classes=[
            ClassPictures(
                name=classnames[number],
                images=int((labels == number).sum()),
                surest=items(of_class[number][:SIDE]),
                doubtful=items(of_class[number][SIDE:][-SIDE:]),
            )
            for number in shown
        ],
        n_differing=len(differing),
        differing=items(differing[:DIFFERING]),
    )


def webp(path: str, side: int, quality: int = QUALITY) -> bytes:
    """Return an image file as WebP, its longer side at most `side` pixels."""
    file = io.BytesIO()
    open_rgb(path, max_side=side).save(file, "WEBP", quality=quality)
    return file.getvalue()


def picture(path: str, side: int) -> str:
    """Return an image file as a data: address, its longer side at most `side` pixels."""
    return f"data:image/webp;base64,{base64.b64encode(webp(path, side)).decode()}"


def read_unknown(path: str, images: str, pseudo_labels: str) -> dict[str, Any]:
    """Return the images that most likely show none of the classes."""
    table = tables.read(path)
    described = tables.read_metadata(path, UnknownMetadata)
    # Images with a captioner's score, which is not null, come first.
    keys = [("captioner_score", "descending"), ("score", "descending")]
    likeliest = table.sort_by(keys)[:UNKNOWN]
    ids = likeliest["image_id"]
    paths = tables.lookup_column(images, "path", ids)
    labels = tables.lookup_column(pseudo_labels, "pseudo_label", ids)
    written = tables.read_metadata(images, IndexMetadata).as_written
    names = pa.array(written(described.classnames)).take(labels.combine_chunks())
    likeliest = likeliest.append_column("zero_shot", names)
    items = likeliest.append_column("path", paths).to_pylist()
    for item in items:
        item["picture"] = picture(item["path"], THUMBNAIL)
    return {
        "answered": described.answers,
        "marked": pc.sum(table["is_unknown"]).as_py() or 0,
        "images": len(table),
        "scored": len(table) - table["captioner_score"].null_count,
        "items": items,
    }
