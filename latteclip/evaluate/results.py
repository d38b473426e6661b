"""The metrics.json of a run, read back and checked, and what its marks mean."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.json_files import read_object

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
}


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
