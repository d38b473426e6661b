"""Files of results that later stages read, and the accuracies that a person's answers give.

The files are metrics.json, selection.json and audit.json.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from latteclip.core.files import read_object, read_record
from latteclip.evaluate.predictions import FIGURES, MISSING, held_out_predictions
from latteclip.labels.fusion_report import FusionReport
from latteclip.labels.guarantees import MIN_ANSWERS, Interval, share_of_new

Run = tuple[str, int]  # method and seed
METRICS = ("dataset", "method", "seed", "flags", "images", *FIGURES)
QUESTIONS = 120  # the default --budget of `latteclip teach`, of which half check
TEACH = "teach"
AUDIT = "audit"


@dataclass(frozen=True)
class Selection:
    """The model that was chosen for a dataset."""

    dataset: str
    method: str
    seed: int
    reason: str
    # A row for each: its run and flags, and how votes compare it with the best without training.
    candidates: list[dict[str, Any]] = field(default_factory=list)

    @property
    def run(self) -> Run:
        return self.method, self.seed


def read_selection(path: str | Path) -> Selection:
    """Read the choice of `select_model`."""
    return read_record(Selection, path)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read the metrics of a run."""
    return read_object(path, METRICS)


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a run by the answers, as fractions with the ends of its 95 % interval."""

    method: str
    seed: int
    value: float
    low: float
    high: float
    can_be_chosen: bool = True  # it reads no label, and it has a model

    @property
    def run(self) -> Run:
        return self.method, self.seed


@dataclass(frozen=True)
class Comparison:
    """By how much a run is more accurate than another, as fractions with a 95 % interval."""

    method: str
    seed: int
    other: str  # method of the other run
    other_seed: int
    value: float  # accuracy of the run minus that of the other
    low: float
    high: float
    decided: bool  # the interval leaves out zero, or both are known to be equal

    @property
    def runs(self) -> tuple[Run, Run]:
        return (self.method, self.seed), (self.other, self.other_seed)


@dataclass(frozen=True)
class Audit:
    """The accuracies of the runs of a dataset by a person's answers, both empty without enough."""

    dataset: str
    split: str
    images: int  # number of images in the split from which images were drawn
    answered: int
    cannot_tell: int  # answers without a class
    none_of_these: int  # images of no class: every prediction is wrong there
    plan: str  # digest of the drawing
    sentence: str  # the verdict: the best run, and the runs that it decidedly beats
    accuracies: list[Accuracy]  # one for every run
    comparisons: list[Comparison]  # one for every pair of runs

    def accuracy(self, method: str, seed: int | None = None) -> Accuracy | None:
        """Return the accuracy of a run of a method, or of its first run without such a seed."""
        of_method = [accuracy for accuracy in self.accuracies if accuracy.method == method]
        first = of_method[0] if of_method else None
        return next((accuracy for accuracy in of_method if accuracy.seed == seed), first)

    def compare(self, run: Run, other: Run) -> Comparison | None:
        """Return the comparison of a run with another, None where either was not scored."""
        for comparison in self.comparisons:
            if comparison.runs == (run, other):
                return comparison
            if comparison.runs == (other, run):
                ends = -comparison.value, -comparison.high, -comparison.low
                return Comparison(*run, *other, *ends, comparison.decided)
        return None

    @property
    def best(self) -> Accuracy | None:
        """Return the most accurate of the runs that can be chosen, the first of equal ones."""
        able = [accuracy for accuracy in self.accuracies if accuracy.can_be_chosen]
        return max(able, key=lambda accuracy: accuracy.value, default=None)


def read_audit(path: str | Path) -> Audit:
    """Read the audit of a dataset."""
    return read_record(Audit, path)


def largest_error(n: int) -> float:
    """Return how far the end of an interval by n answers may lie from its middle."""
    widest = share_of_new(n // 2, n)
    return (widest.high - widest.low) / 2


@dataclass(frozen=True)
class Statement:
    """Accuracies that answers of a person give. None: there are too few."""

    labels: Interval | None  # of all training images
    model: Interval | None  # on images like those that were drawn
    by: str = AUDIT  # the command whose answers give the accuracy of the model


def state(
    run: Run,
    train_predictions: str | None,
    report: FusionReport | None,
    audit: Audit | None,
) -> Statement:
    """Return what the answers of a dataset give for its labels and for a run."""
    checked = report.answers.checked if report else None
    labels = checked.right if checked and checked.right.n >= MIN_ANSWERS else None
    scored = audit.accuracy(*run) if audit else None
    if audit and scored and scored.run == run:
        known = audit.answered - audit.cannot_tell
        model = Interval(scored.value, scored.low, scored.high, known)
        return Statement(labels, model)
    if report is None or checked is None or train_predictions is None:
        return Statement(labels, None)
    return Statement(labels, _by_checks(train_predictions, report), TEACH)


def _by_checks(train_predictions: str, report: FusionReport) -> Interval | None:
    """Return the share of checked images that a run classifies correctly without them."""
    answers = report.answers
    ids = pa.chunked_array([answers.checking], pa.string())
    predicted = held_out_predictions(train_predictions, ids)
    hits = [
        report.classnames[label] == answers.images[name]
        for name, label in zip(answers.checking, predicted, strict=True)
        if label != MISSING
    ]
    return share_of_new(sum(hits), len(hits)) if len(hits) >= MIN_ANSWERS else None
