"""Pictures of a dataset's page as small WebP files inside it, with what is known of them."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.tables import IndexMetadata, UnknownMetadata
from latteclip.data.images import open_rgb

QUALITY = 75
# Longer side in pixels.
PICTURE = 320  # of a picture of the gallery
THUMBNAIL = 112
EXAMPLES = 12  # pictures
UNKNOWN = 24


@dataclass(frozen=True)
class Gallery:
    """Some training images of a dataset, and what is known of all."""

    n_train: int
    n_test: int
    classnames: list[str]
    has_truth: bool  # whether the labels of the training images are known
    items: list[dict[str, Any]]  # from the most to the least certain label


def read_gallery(
    images: str,
    pseudo_labels: str,
    fused_labels: str | None,
    captions: str | None,
    answers: Mapping[str, str | None],
) -> Gallery:
    """Read what the page shows of training images, whose labels by a person are in `answers`."""
    index = tables.read(images, ["image_id", "path", "split", "classname"])
    described = tables.read_metadata(images, IndexMetadata)
    classnames = described.as_written(described.classnames)
    train = index.filter(pc.not_equal(index["split"], "test"))
    path, label, confidence = pseudo_labels, "pseudo_label", "confidence"
    source = "zero-shot label"
    if fused_labels:
        path, label, confidence = fused_labels, "fused_label", "fused_confidence"
        source = "fused label"
    shares = tables.lookup_column(path, confidence, train["image_id"])
    order = np.argsort(-shares.to_numpy(), kind="stable")
    some = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int)
    chosen = train.take(order[some])
    ids = chosen["image_id"]
    labels = tables.lookup_column(path, label, ids)
    zero_shot = tables.lookup_column(pseudo_labels, "pseudo_label", ids)
    names = pa.array(classnames)
    columns = {
        "image_id": ids,
        "path": chosen["path"],
        "truth": chosen["classname"],
        "label": names.take(labels.combine_chunks()),
        "zero_shot": names.take(zero_shot.combine_chunks()),
    }
    if captions:
        table = tables.read(captions, ["id", "caption"])
        columns["caption"] = table["caption"].take(pc.index_in(ids, table["id"]))
    items = pa.table(columns).to_pylist()
    for item in items:
        item |= {"source": source, "picture": picture(item["path"], PICTURE)}
        if item["truth"] is not None:
            [item["truth"]] = described.as_written([item["truth"]])
        if item["image_id"] in answers:
            name = answers[item["image_id"]] or "none of the classes"
            [item["label"]] = described.as_written([name])
            item["source"] = "a person's answer"
    n_train = len(train)
    has_truth = not train["classname"].null_count
    return Gallery(n_train, len(index) - n_train, classnames, has_truth, items)


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
