"""The figures of a dataset's page: arrays in, small tables out.

Letters: N images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from latteclip.evaluate.metrics import recalls
from latteclip.evaluate.summary import known, summary
from latteclip.report.runs import Floats, Ints

VISIBLE = 0.05  # points: a smaller change is written as none


@dataclass(frozen=True)
class Row:
    """A method in the table of accuracies, in percent and points; None where not known."""

    method: str
    marks: list[str]
    seeds: int
    acc1: float | None
    spread: float | None  # sample standard deviation over seeds
    each: list[float]  # acc1 of every seed
    gain: float | None  # over zero-shot
    over_baseline: float | None  # over the method that the run's configuration names
    acc5: float | None
    recall: float | None  # mean over classes


def headline(
    runs: Sequence[Mapping[str, Any]], baseline: str, zero_shot: float | None
) -> list[Row]:
    """One row per method, in the order of the runs.

    Args:
        runs: the metrics of every run of one dataset.
        baseline: the method of `over_baseline`.
        zero_shot: acc1 of the pretrained model as a fraction.
    """
    table = summary(pd.DataFrame(list(runs)), baseline)
    rows = []
    for values in table.to_dict("records"):
        own = [run["acc1"] for run in runs if run["method"] == values["method"]]
        acc1 = known(values["acc1_mean"])
        gain = None if acc1 is None or zero_shot is None else acc1 - 100 * zero_shot
        rows.append(
            Row(
                method=values["method"],
                marks=values["marks"].split(),
                seeds=values["seeds"],
                acc1=acc1,
                spread=known(values["acc1_std"]),
                each=[100 * value for value in own if value is not None],
                gain=gain,
                over_baseline=known(values["acc1_gain"]),
                acc5=known(values["acc5_mean"]),
                recall=known(values["mean_per_class_recall"]),
            )
        )
    return rows


@dataclass(frozen=True)
class ClassChange:
    """Recall of one class in percent, by the pretrained model and by another."""

    classname: str
    images: int
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


def class_changes(
    labels: Ints, before: Ints, after: Ints, classnames: Sequence[str]
) -> list[ClassChange]:
    """Classes with test images, those that gained most first.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        classnames: of the C classes.
    """
    c = len(classnames)
    old, counts = recalls(before, labels, c)
    new, _ = recalls(after, labels, c)
    changes = [
        ClassChange(classnames[i], int(counts[i]), 100 * float(old[i]), 100 * float(new[i]))
        for i in np.flatnonzero(counts)
    ]
    return sorted(changes, key=lambda row: (-row.change, row.classname))


@dataclass(frozen=True)
class Pair:
    """Images of one class that are taken for another, in percent of the class."""

    true: int
    predicted: int
    before: float
    after: float


def confusion(labels: Ints, predictions: Ints, classes: Sequence[int]) -> Floats:
    """Share of the images of each of K classes (row) that are given each of them (column) [K, K].

    Args:
        labels: [N].
        predictions: [N].
        classes: K classes; the row of one without images is zero.
    """
    k = len(classes)
    place = np.full(1 + max(labels.max(), predictions.max(), *classes), -1)
    place[list(classes)] = np.arange(k)
    rows, columns = place[labels], place[predictions]
    inside = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[inside] * k + columns[inside], minlength=k * k)
    images = np.bincount(rows[rows >= 0], minlength=k)[:, None]
    shares: Floats = counts.reshape(k, k) / np.maximum(images, 1)
    return shares


def worst_pairs(labels: Ints, before: Ints, after: Ints, c: int, n: int) -> list[Pair]:
    """The n largest confusions of a model; pairs that do not occur take no memory.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        c: number of classes.
        n: how many at most.
    """
    sizes = np.bincount(labels, minlength=c)
    pairs, counts = np.unique(labels.astype(np.int64) * c + after, return_counts=True)
    true, predicted = np.divmod(pairs, c)
    shares = counts / sizes[true]
    wrong = np.flatnonzero(true != predicted)
    found = []
    for i in wrong[np.argsort(-shares[wrong], kind="stable")[:n]]:
        was = ((labels == true[i]) & (before == predicted[i])).sum() / sizes[true[i]]
        found.append(
            Pair(int(true[i]), int(predicted[i]), 100 * float(was), 100 * float(shares[i]))
        )
    return found


def classes_of(pairs: Sequence[Pair], n: int) -> list[int]:
    """The classes of the first pairs, at most n, neighbours where they are confused."""
    chosen: list[int] = []
    for pair in pairs:
        new = [c for c in (pair.true, pair.predicted) if c not in chosen]
        if len(chosen) + len(new) <= n:
            chosen += new
    return chosen


@dataclass(frozen=True)
class Reliability:
    """Images in bins of confidence."""

    edges: Floats  # [B + 1]
    shares: Floats  # [B], of all images
    accuracy: Floats | None  # [B], NaN where a bin is empty; None without labels
    kept: Floats | None  # accuracy among the surest 1, 2, ... 100 percent


def reliability(confidence: Floats, correct: Ints | None, bins: int = 10) -> Reliability:
    """How often pseudo-labels are right, by their confidence.

    Args:
        confidence: [N], between 0 and 1.
        correct: [N], 1 where the pseudo-label is the label; None where labels are not known.
        bins: of equal width.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    shares = counts / max(1, len(confidence))
    if correct is None:
        return Reliability(edges, shares, None, None)
    hits = np.bincount(place, weights=correct, minlength=bins)
    accuracy = np.divide(hits, counts, out=np.full(bins, np.nan), where=counts > 0)
    running = np.cumsum(correct[np.argsort(-confidence, kind="stable")])  # [N]
    ends = np.ceil(np.arange(1, 101) / 100 * len(confidence)).astype(int)
    return Reliability(edges, shares, accuracy, running[ends - 1] / ends)


@dataclass(frozen=True)
class Moved:
    """A test image whose prediction changed between right and wrong."""

    index: int
    before: int
    after: int


def moved(
    labels: Ints, before: Ints, after: Ints, margins: Floats, *, improved: bool, n: int
) -> list[Moved]:
    """The n clearest images that a model puts right, or wrong.

    Clearest is the largest margin over the second best class. No two are of the same class before
    the class is seen in all others.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        margins: [N] of those over the second best class.
        improved: right after and wrong before, or the other way round.
        n: how many at most.
    """
    right, was = after == labels, before == labels
    changed = np.flatnonzero((right & ~was) if improved else (~right & was))
    order = changed[np.argsort(-margins[changed], kind="stable")]
    return [Moved(i, int(before[i]), int(after[i])) for i in taking_turns(order, labels, n)]


def taking_turns(order: Ints, classes: Ints, n: int) -> list[int]:
    """The first n images of an order, none of a class before all others had as many.

    Args:
        order: numbers of images, the best first.
        classes: [N] of all images.
        n: how many at most.
    """
    own = classes[order]
    by_class = np.argsort(own, kind="stable")
    counts = np.bincount(own)
    turns = np.empty(len(order), np.int_)
    turns[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return [int(i) for i in order[np.argsort(turns, kind="stable")[:n]]]


@dataclass(frozen=True)
class CaptionStatistics:
    """Captions of one kind in numbers; shares in percent."""

    captions: int
    failed: int  # the model was not reached
    empty: int  # it wrote nothing
    distinct: int
    cut: float  # share that ended at the token limit
    words: float | None  # mean
    tokens: float | None  # mean
    names_class: float  # share of the texts that hold the name of any class
    names_pseudo_label: float | None  # share that holds the name of its pseudo-label
    names_label: float | None  # share that holds the name of its true class
    frequent: list[tuple[str, int]]


def caption_statistics(
    summary: Mapping[str, Any],
    names_pseudo_label: float | None,
    names_label: float | None,
    n_frequent: int = 5,
) -> CaptionStatistics:
    """Captions of one kind in numbers: those of their summary, and what needs labels.

    Args:
        summary: of this kind in captions/summary.json.
        names_pseudo_label: percent of the texts that hold the name of their pseudo-label.
        names_label: percent that hold the name of their true class.
        n_frequent: how many of the most frequent texts are kept.
    """
    return CaptionStatistics(
        **{key: summary[key] for key in ("captions", "failed", "empty", "distinct")},
        cut=100 * summary["cut"] / max(1, summary["captions"]),
        words=summary["words"].get("mean"),
        tokens=summary["tokens"].get("mean"),
        names_class=100 * summary["share_naming_a_class"],
        names_pseudo_label=names_pseudo_label,
        names_label=names_label,
        frequent=[(row["caption"], row["times"]) for row in summary["most_repeated"][:n_frequent]],
    )
