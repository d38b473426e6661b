"""Files of results that later stages read: metrics.json, selection.json and audit.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.core.files import read_object, read_record

Run = tuple[str, int]  # method and seed
FIGURES = ("acc1", "acc5", "mean_per_class_recall")
METRICS = ("dataset", "method", "seed", "flags", "images", *FIGURES)


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
                return Comparison(
                    *run,
                    *other,
                    value=-comparison.value,
                    low=-comparison.high,
                    high=-comparison.low,
                    decided=comparison.decided,
                )
        return None

    @property
    def best(self) -> Accuracy | None:
        """Return the most accurate of the runs that can be chosen, the first of equal ones."""
        able = [accuracy for accuracy in self.accuracies if accuracy.can_be_chosen]
        return max(able, key=lambda accuracy: accuracy.value, default=None)


def read_audit(path: str | Path) -> Audit:
    """Read the audit of a dataset."""
    return read_record(Audit, path)
