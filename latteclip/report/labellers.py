"""`latteclip labellers`: who labels the training images, the accuracy of each, and what it took."""

import json as jsons
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from latteclip.captions.table import AnswersMetadata
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import values_of
from latteclip.core.metadata import LabellerLabelsMetadata
from latteclip.core.terminal import counted
from latteclip.labels.fusion_report import (
    NAME,
    LabellerReport,
    read_fusion_report,
)
from latteclip.labels.guarantees import Interval
from latteclip.labels.votes import NO_VOTE, ZERO_SHOT
from latteclip.report.runs import read_answers

Labels = npt.NDArray[np.int32]
LABELLER_LABELS = "labeller_labels.parquet"  # beside the report on the labels
FUSED = "fused"


@dataclass(frozen=True)
class Labeller:
    """What labels training images: a labeller, zero-shot CLIP, or all together."""

    name: str
    kind: str
    coverage: float  # share of the images that it has a vote about
    accuracy: Interval | None  # share of right votes; None: unknown
    answers_needed: int = 0  # answers about random images that would determine it
    right: float | None = None  # share of right votes; None: the dataset has no labels
    asked: AnswersMetadata | None = None  # what its questions took; None: it asked nothing


@dataclass(frozen=True)
class Labellers:
    """All that labels the training images of a dataset."""

    images: int
    answers: int  # answers of a person about images drawn at random
    labellers: list[Labeller]
    reason: str  # why the labels are those of one labeller; "": they are not
    # Shares of the images with votes of both on which two labellers agree, in their order; None:
    # there is no such image.
    agreement: list[list[float | None]]


def labellers(results: str, /, json: bool = False) -> str:
    """Show who labels the training images: the accuracy of each, and what it took.

    Accuracies follow from answers of latteclip teach about images drawn at random, if there are
    any, and otherwise from votes and images, where these determine them.

    Args:
        json: print JSON for programs
    """
    values = read_labellers(Path(results))
    if json:
        return jsons.dumps(values_of(values), indent=2, ensure_ascii=False)
    return "\n".join(_lines(results, values))


def read_labellers(folder: Path) -> Labellers:
    """Read who labels the images of a dataset's results, or raise UserError."""
    path = folder / LABELLER_LABELS
    if folder.is_dir() and not path.is_file():
        raise UserError(
            f"{path} does not exist: no method of this dataset was run that learns from votes "
            "(pseudo_labels: caption, lmm or fused)."
        )
    report = read_fusion_report(folder / NAME)
    names = tables.read_metadata(path, LabellerLabelsMetadata).labellers
    table = tables.read(path, tables.LABELLER_LABELS)
    ids = table["image_id"]
    fused = tables.read(folder / "fused_labels.parquet", tables.FUSED_LABELS)
    fused = fused.take(tables.find_rows(ids, fused["image_id"], path))
    zero_shot = tables.lookup_column(
        folder / "pseudo_labels.parquet",
        tables.PSEUDO_LABELS,
        key="image_id",
        column="pseudo_label",
        ids=ids,
    )
    by_labeller = tables.from_list_column(table["labels"]).T
    labels = dict(zip(names, by_labeller, strict=True))
    labels |= {ZERO_SHOT: zero_shot.to_numpy(), FUSED: fused["fused_label"].to_numpy()}
    rows = [_labeller(folder, one, len(ids)) for one in report.labellers]
    checked = report.answers.checked
    rows += [
        _labeller(folder, report.zero_shot, len(ids)),
        Labeller(FUSED, FUSED, 1.0, checked.right if checked else None),
    ]
    truth = tables.lookup_column(
        folder / "images.parquet", tables.IMAGES, "image_id", "label", ids
    )
    if not truth.null_count:
        true = truth.to_numpy()
        rows = [replace(row, right=_agreement(labels[row.name], true)) for row in rows]
    return Labellers(
        images=len(ids),
        answers=checked.right.n if checked else 0,
        labellers=rows,
        reason=report.reason,
        agreement=[[_agreement(a, b) for b in labels.values()] for a in labels.values()],
    )


def _labeller(folder: Path, one: LabellerReport, n_images: int) -> Labeller:
    answers = folder / one.answers if one.answers else None
    asked = read_answers(answers) if answers and answers.is_file() else None
    return Labeller(
        name=one.name,
        kind=one.kind,
        coverage=one.votes / n_images,
        accuracy=one.accuracy,
        answers_needed=one.answers_needed,
        asked=asked if asked and asked.requests else None,
    )


def _agreement(first: Labels, second: Labels) -> float | None:
    both = (first != NO_VOTE) & (second != NO_VOTE)
    return float((first == second)[both].mean()) if both.any() else None


def in_words(labeller: Labeller) -> str:
    """Return the accuracy of a labeller, or what would determine it."""
    accuracy = labeller.accuracy
    needed = counted(labeller.answers_needed, "answer")
    if accuracy is None and labeller.answers_needed:
        return f"unknown; {needed} about random images would estimate it"
    if accuracy is None:
        return "unknown without answers"
    value, low, high = (100 * x for x in (accuracy.value, accuracy.low, accuracy.high))
    by = "answers" if accuracy.n else "votes and images"
    return f"{value:.1f} % ({low:.1f} to {high:.1f}), by {by}"


def _lines(results: str, values: Labellers) -> Iterator[str]:
    yield f"{results}: {counted(values.images, 'training image')}"
    rows = []
    for labeller in values.labellers:
        row = {
            "labeller": labeller.name,
            "kind": labeller.kind if labeller.kind != labeller.name else "",
            "estimated accuracy": in_words(labeller),
            "votes": f"{labeller.coverage:.0%}",
        }
        if labeller.right is not None:
            row["right"] = f"{labeller.right:.1%}"
        rows.append(row)
    yield pd.DataFrame(rows).to_string(index=False)
    if values.reason:
        yield values.reason
    yield "votes: share of the images. right: share of the votes, by the labels of the dataset."
    for labeller in values.labellers:
        if labeller.asked is not None:
            yield f"{labeller.name}: {labeller.asked.in_words}."
    names = [labeller.name for labeller in values.labellers]
    yield ""
    yield "agreement, in percent of the images with votes of both:"
    cells = [
        ["" if share is None else f"{share:.0%}" for share in row]
        for row in values.agreement
    ]
    yield pd.DataFrame(cells, index=names, columns=names).to_string()
