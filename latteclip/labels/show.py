"""`latteclip labels show`: how the labels of a dataset came about, and a few images."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.config.registry import VOTES
from latteclip.core import files, tables
from latteclip.core.errors import UserError
from latteclip.core.files import values_of
from latteclip.core.run_options import labels_path
from latteclip.labels.fusion_report import NAME, FusionReport, read_fusion_report

WIDTH = 100
SEED = 0  # seed of the draw of images
# What gives an image a label: the begin of the names of the columns.
SOURCES = ("zero_shot", "adapted", "image", *VOTES, "fused")


def show(results: str, n: int, image_ids: Sequence[str]) -> str:
    """Return the summary of a dataset's labels, and some images with the label by each source.

    Images are those of the given ids, or else n of different kinds.
    """
    table, report, images = _read(results, n, image_ids)
    moved = _differ(table, "zero_shot").sum()
    summary = [
        f"{results}: {len(table)} training images, {len(report.classnames)} classes, "
        f"{report.model}",
        *report.sentences(len(table)),
        f"{moved} labels differ from the zero-shot ones.",
    ]
    blocks = ["\n".join(_lines(image)) for image in images]
    return "\n\n".join(["\n".join(summary), *blocks])


def as_json(results: str, n: int, image_ids: Sequence[str]) -> str:
    """Return the same as JSON for programs. Labels are class names, null without a vote."""
    table, report, images = _read(results, n, image_ids)
    values = values_of(report)
    checked = report.answers.checked
    values["answers"] = {
        "images": len(report.answers.images),
        "checked": {"right": values_of(checked.right)} if checked else None,
    }
    values["images"] = len(table)
    values["differ_from_zero_shot"] = int(_differ(table, "zero_shot").sum())
    return json.dumps({**values, "shown": images}, indent=2)


def _read(
    results: str, n: int, image_ids: Sequence[str]
) -> tuple[pa.Table, FusionReport, list[dict[str, Any]]]:
    """Return FUSED_LABELS with the zero-shot labels, its report, and some images."""
    folder = Path(results)
    path = labels_path(folder)
    table = tables.read(path, tables.FUSED_LABELS)
    report = read_fusion_report(folder / NAME)
    ids = table["image_id"]
    labels = folder / "pseudo_labels.parquet"
    zero_shot = tables.lookup_column(
        labels, tables.PSEUDO_LABELS, "image_id", "pseudo_label", ids
    )
    table = table.append_column("zero_shot_label", zero_shot)
    rows = _of_each_kind(table, n)
    if image_ids:
        rows = pc.index_in(pa.array(image_ids), ids)
        if rows.null_count:
            missing = image_ids[rows.is_null().index(True).as_py()]
            raise UserError(
                f"{path} has no image {missing!r}. An image_id of this table is "
                f"{ids[0].as_py()!r}."
            )
    chosen = table.take(rows).to_pylist()
    captions = folder / files.TABLES[files.IMAGES]
    texts = [None] * len(chosen)
    if captions.is_file():
        wanted = [row["image_id"] for row in chosen]
        texts = tables.lookup(captions, tables.CAPTIONS, "id", "caption", wanted)
    pairs = zip(chosen, texts, strict=True)
    return table, report, [_image(row, report) | {"caption": text} for row, text in pairs]


def _differ(table: pa.Table, source: str) -> np.ndarray:
    """Return whether the label of each image [N] is another one than that by a source."""
    differ = pc.not_equal(table[f"{source}_label"], table["fused_label"])
    if source in VOTES:
        differ = pc.and_(differ, pc.greater(table[f"{source}_confidence"], 0))
    return np.asarray(pc.fill_null(differ, False).to_numpy())


def _of_each_kind(table: pa.Table, n: int) -> pa.Array:
    """Return n rows drawn at random, in equal numbers as far as they exist of three kinds.

    The label is not the zero-shot one, or else sources disagree, or all sources agree.
    """
    disagree = np.any([_differ(table, source) for source in SOURCES], axis=0)
    kinds = np.select([_differ(table, "zero_shot"), disagree], [0, 1], default=2)
    order = np.random.default_rng(SEED).permutation(len(table))
    rank = np.empty(len(table), np.int64)  # of an image among those of its kind
    for kind in range(3):
        of_kind = order[kinds[order] == kind]
        rank[of_kind] = np.arange(len(of_kind))
    return pa.array(np.sort(np.lexsort((kinds, rank))[:n]))


def _image(row: Mapping[str, Any], report: FusionReport) -> dict[str, Any]:
    """Return an image with the class by each source, None where it has none."""
    image: dict[str, Any] = {"image_id": row["image_id"]}
    for source in SOURCES:
        name = None
        label, confidence = row[f"{source}_label"], row.get(f"{source}_confidence", 1)
        if label is not None and confidence:
            written = report.classnames[label]
            name = report.written_names.get(written, written)
        image[f"{source}_label"] = name
        if f"{source}_confidence" in row:
            image[f"{source}_confidence"] = confidence
    if row["image_id"] in report.answers.images:
        image["answered"] = report.answers.images[row["image_id"]]
    return image


def _lines(image: Mapping[str, Any]) -> Iterator[str]:
    """Yield an image for the terminal."""
    yield image["image_id"]
    for source in SOURCES:
        label, confidence = image[f"{source}_label"], image.get(f"{source}_confidence")
        if label is not None and confidence is not None:
            label = f"{label} ({confidence:.2f})"
        elif confidence == 0:
            label = "no vote"
        if label is not None:
            yield f"  {source.replace('_', '-'):<11} {label}"
        if source == "caption" and label is not None and image["caption"]:
            yield textwrap.indent(textwrap.fill(image["caption"], WIDTH - 14), " " * 14)
    if "answered" in image:
        yield f"  {'answered':<11} {image['answered'] or 'none of these'}"
