"""Files of results that later stages read: metrics.json, selection.json and audit.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.files import read_object
from latteclip.core.settings import from_values

FIGURES = ("acc1", "acc5", "mean_per_class_recall")
METRICS = ("dataset", "method", "seed", "images", *FIGURES, "per_class")
# What a table must say of a run beside its numbers: each mark, and its footnote.
MARKS = {
    "supervised": "reads the labels of the training images: an upper bound, not an unsupervised "
    "method",
    "ours": "not in the paper",
    "audited": "a person's answers about images drawn at random say how often it is right, below",
    "collapsed": "predictions collapsed in training: fewer than half of the classes are predicted, "
    "or hardly any prediction agrees with its pseudo-label",
    "diverged": "the training diverged at the learning rate that was found: this is the untrained "
    "model",
}
FAILED = frozenset({"collapsed", "diverged"})  # marks of trainings that are never chosen


@dataclass(frozen=True)
class Selection:
    """The model that was chosen for a dataset."""

    dataset: str
    method: str
    seed: int
    reason: str  # one sentence
    # Of each candidate that votes judged, how far it agrees with them: a fraction.
    agreements: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def run(self) -> tuple[str, int]:
        return self.method, self.seed

    def agreement(self, method: str) -> float | None:
        """How far a method agrees with votes: the chosen run of it, or else the first judged."""
        of_method = [value for run, value in self.agreements.items() if run[0] == method]
        first = next(iter(of_method), None)
        return self.agreements.get(self.run, first) if method == self.method else first


def read_selection(path: str | Path) -> Selection:
    """What `select_model` chose, from its JSON file.

    Raises:
        UserError: the file is missing or broken.
    """
    keys = ("dataset", "method", "seed", "reason")
    values = read_object(path, keys)
    agreements = {
        (one["method"], one["seed"]): one["agreement"]
        for one in values.get("candidates", [])
        if one.get("agreement") is not None
    }
    return Selection(**{key: values[key] for key in keys}, agreements=agreements)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """The metrics.json of a run; `marks` is empty where the file has none.

    Raises:
        UserError: as of `read_object`, or a figure is not a number.
    """
    values = {"marks": [], **read_object(path, METRICS)}
    for name in FIGURES:
        if not isinstance(values[name], int | float | None):
            raise UserError(
                f"{path}: {name} is {values[name]!r}, not a number; delete the file and rerun its "
                "stage."
            )
    return values


MARK = "audited"  # one of results.MARKS
Run = tuple[str, int]  # method and seed


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a run by the answers, as fractions with the ends of its 95 % interval."""

    method: str
    seed: int
    value: float
    low: float
    high: float
    can_be_chosen: bool = True  # it reads no label, and there is a model of it to take

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
    more: int | None  # images that are still to be answered; null where nobody can say

    @property
    def runs(self) -> tuple[Run, Run]:
        return (self.method, self.seed), (self.other, self.other_seed)

    def reversed(self) -> "Comparison":
        """The same comparison, of the other run with this one."""
        (method, seed), (other, other_seed) = reversed(self.runs)
        ends = (-self.value, -self.high, -self.low)
        return Comparison(method, seed, other, other_seed, *ends, self.decided, self.more)


@dataclass(frozen=True)
class Audit:
    """What the answers say of the runs of a dataset.

    Where they say nothing (too few of them, or the images or classes changed since), `accuracies`
    and `comparisons` are empty, and `sentence` says why.
    """

    dataset: str
    split: str
    images: int  # of the split, from which they were drawn
    answered: int
    cannot_tell: int  # answers that say nothing, of those
    none_of_these: int  # images of no class: every prediction is wrong there
    plan: str  # digest of the drawing
    sentence: str  # the verdict: the best run, and what it is decidedly better than
    accuracies: list[Accuracy]  # of every run
    comparisons: list[Comparison]  # of every pair of runs, once

    def accuracy(self, method: str, seed: int | None = None) -> Accuracy | None:
        """The accuracy of a run of a method; without a seed, that of its first run."""
        of_method = [one for one in self.accuracies if one.method == method]
        return next((one for one in of_method if one.seed == seed), next(iter(of_method), None))

    def compare(self, one: Run, other: Run) -> Comparison | None:
        """The comparison of one run with another; None where either was not scored."""
        for found in self.comparisons:
            if found.runs == (one, other):
                return found
            if found.runs == (other, one):
                return found.reversed()
        return None

    @property
    def best(self) -> Accuracy | None:
        """The most accurate of the runs that can be chosen; of equals the first."""
        open_to = [one for one in self.accuracies if one.can_be_chosen]
        return max(open_to, key=lambda one: one.value, default=None)


def read_audit(path: str) -> Audit:
    """The audit of a dataset, from its JSON file.

    Raises:
        UserError: the file is missing, or not as `score_audit` writes it.
    """
    try:
        return from_values(Audit, read_object(path, ["dataset"]))
    except UserError as error:
        raise UserError(f"{path} is not as score_audit writes it: {error}") from None


def read_audits(paths: Sequence[str]) -> dict[str, Audit]:
    """Audits by the dataset that they are of."""
    return {audit.dataset: audit for audit in map(read_audit, paths)}


def marked(runs: Sequence[Mapping[str, Any]], audits: Mapping[str, Audit]) -> list[dict[str, Any]]:
    """The metrics of runs, with the mark at the methods that were audited."""
    found = []
    for run in runs:
        audit = audits.get(run["dataset"])
        is_audited = audit is not None and audit.accuracy(run["method"]) is not None
        found.append({**run, "marks": [*run["marks"], MARK] if is_audited else run["marks"]})
    return found
