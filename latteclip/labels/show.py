"""`latteclip labels show`: how the labels of a dataset came about, and a few images."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.config.registry import VOTES
from latteclip.core import files, tables
from latteclip.core.errors import UserError
from latteclip.core.files import values_of
from latteclip.labels.fusion_report import NAME, UNCHECKED, FusionReport, read_fusion_report

WIDTH = 100
SEED = 0  # seed of the draw of images


class LabelSource(NamedTuple):
    """What gives an image a label, and the columns of that label."""

    title: str
    label: str
    confidence: str | None = None  # None: it has a label for each image

    def votes(self, row: Mapping[str, Any]) -> bool:
        """Return whether it has a label for the image of a row."""
        if row[self.label] is None:
            return False
        return self.confidence is None or row[self.confidence] > 0


SOURCES = (
    LabelSource("zero-shot", "zero_shot_label"),
    LabelSource("adapted", "adapted_label"),
    LabelSource("images", "image_label"),
    *(LabelSource(name, f"{name}_label", f"{name}_confidence") for name in VOTES),
    LabelSource("fused", "fused_label", "fused_confidence"),
)


def show(results: str, n: int, image_ids: Sequence[str]) -> str:
    """Return the summary of a dataset's labels, and some images with the label by each source.

    Images are those of the given ids, or else n of different kinds.
    """
    shown = _read(results, n, image_ids)
    images = [_image(row, shown.report) for row in shown.rows]
    return "\n\n".join([_summary(shown), *images])


def as_json(results: str, n: int, image_ids: Sequence[str]) -> str:
    """Return the same as JSON for programs. Labels are class names, null without a vote."""
    shown = _read(results, n, image_ids)
    report = values_of(shown.report)
    answers = report.pop("answers")
    if answers["checked"]:
        for key in ("image_id", "labels", "classifiers"):
            del answers["checked"][key]
    answers["images"] = len(answers["images"])
    values = {
        "images": shown.n,
        "differ_from_zero_shot": shown.moved,
        **report,
        "answers": answers,
        "shown": [_values(row, shown.report) for row in shown.rows],
    }
    return json.dumps(values, indent=2)


class _Shown(NamedTuple):
    """A dataset's labels, and the images that are shown."""

    path: Path
    n: int  # training images
    moved: int  # labels that are not the zero-shot ones
    report: FusionReport
    rows: list[dict[str, Any]]  # the shown images, with their captions


def _read(results: str, n: int, image_ids: Sequence[str]) -> _Shown:
    folder = Path(results)
    path = folder / "fused_labels.parquet"
    captions = folder / files.TABLES[files.IMAGES]
    if folder.is_dir() and not path.exists():
        raise UserError(
            f"{path} does not exist: no method of this dataset was run that learns from captions "
            "or class scores (pseudo_labels: caption, lmm or fused)."
        )
    table = tables.read(path, tables.FUSED_LABELS)
    report = read_fusion_report(folder / NAME)
    zero_shot = tables.lookup_column(
        folder / "pseudo_labels.parquet",
        tables.PSEUDO_LABELS,
        key="image_id",
        column="pseudo_label",
        ids=table["image_id"],
    )
    table = table.append_column("zero_shot_label", zero_shot)
    chosen = _of_each_kind(table, n)
    if image_ids:
        chosen = _by_id(table["image_id"], image_ids, path)
    rows = table.take(chosen).to_pylist()
    texts = [None] * len(rows)
    if captions.is_file():
        ids = [row["image_id"] for row in rows]
        texts = tables.lookup(captions, tables.CAPTIONS, "id", "caption", ids)
    for row, text in zip(rows, texts, strict=True):
        row["caption"] = text
    moved = pc.sum(pc.not_equal(table["fused_label"], zero_shot)).as_py()
    return _Shown(path, len(table), moved, report, rows)


def _by_id(ids: pa.ChunkedArray, wanted: Sequence[str], path: Path) -> pa.Array:
    rows = pc.index_in(pa.array(wanted), ids)
    if rows.null_count:
        missing = wanted[rows.is_null().index(True).as_py()]
        example = ids[0].as_py()
        raise UserError(
            f"{path} has no image {missing!r}. An image_id of this table is {example!r}."
        )
    return rows


def _of_each_kind(table: pa.Table, n: int) -> pa.Array:
    """Return n rows drawn at random, in equal numbers as far as they exist of three kinds.

    The label is not the zero-shot one, or else sources disagree, or all sources agree.
    """
    voted = table.select([source.label for source in SOURCES]).to_pandas()
    is_changed = voted["fused_label"] != voted["zero_shot_label"]
    for source in SOURCES:
        if source.confidence is not None:
            has_vote = table[source.confidence].to_numpy() > 0
            voted[source.label] = voted[source.label].where(has_vote)
    disagree = voted.max(axis=1) != voted.min(axis=1)
    kinds = np.select([is_changed, disagree], [0, 1], default=2)
    order = np.random.default_rng(SEED).permutation(len(voted))
    kinds = kinds[order]
    turns = pd.Series(kinds).groupby(kinds).cumcount()
    by_turn = order[np.lexsort((kinds, turns))]
    return pa.array(np.sort(by_turn[:n]))


def _summary(shown: _Shown) -> str:
    path, n, moved, report, _ = shown
    lines = [
        f"{path}: {n} training images, {len(report.classnames)} classes, {report.model}",
        f"votes: {report.votes} of {report.voting} of {n} images",
        f"labels: {moved} of {n} differ from the zero-shot ones, {report.changed} from the "
        "adapted ones",
    ]
    if report.reason:
        lines.append(report.reason)
    if not report.is_checked:
        lines.append(UNCHECKED)
    if report.without_evidence:
        names = ", ".join(report.without_evidence)
        lines.append(f"no label, since nothing but class texts names them: {names}")
    answers = report.answers
    if answers.images:
        checked = f"; labels {answers.checked.sentence}" if answers.checked else ""
        lines.append(
            f"answers: a person answered about {len(answers.images)} images{checked}"
        )
    return "\n".join(lines)


def _names(report: FusionReport) -> list[str]:
    return [report.written_names.get(name, name) for name in report.classnames]


def _values(row: dict[str, Any], report: FusionReport) -> dict[str, Any]:
    """Return a shown image for JSON."""
    names = _names(report)
    image_id = row["image_id"]
    values: dict[str, Any] = {"image_id": image_id}
    for source in SOURCES:
        values[source.label] = names[row[source.label]] if source.votes(row) else None
        if source.confidence is not None:
            values[source.confidence] = row[source.confidence]
    values["caption"] = row["caption"]
    if image_id in report.answers.images:
        values["answered"] = report.answers.images[image_id]
    return values


def _image(row: dict[str, Any], report: FusionReport) -> str:
    names = _names(report)
    caption = row["caption"]
    lines = [row["image_id"]]
    for source in SOURCES:
        if row[source.label] is None:
            continue
        text = names[row[source.label]] if source.votes(row) else "no vote"
        if source.confidence is not None and source.votes(row):
            text = f"{text} ({row[source.confidence]:.2f})"
        lines.append(f"  {source.title:<11} {text}")
        if source.title == "caption" and caption:
            lines.append(textwrap.indent(textwrap.fill(caption, WIDTH - 14), " " * 14))
    answers = report.answers.images
    if row["image_id"] in answers:
        lines.append(f"  {'answered':<11} {answers[row['image_id']] or 'none of these'}")
    return "\n".join(lines)
