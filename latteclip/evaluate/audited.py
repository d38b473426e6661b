"""The audit.json of a dataset: what a person's answers say of its models, for tables and pages.

`latteclip audit` writes it. Nothing but what people read depends on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.json_files import read_object
from latteclip.core.settings import from_values

MARK = "audited"  # one of results.MARKS


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a run by the answers, as fractions with the ends of its 95 % interval."""

    method: str
    seed: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """By how much a method is better than another, as fractions."""

    method: str
    other: str
    value: float
    low: float
    high: float
    decided: bool
    more: int | None  # images that are still to be answered; null where nobody can say


@dataclass(frozen=True)
class Audit:
    """What the answers say."""

    dataset: str
    split: str
    images: int  # of the split, from which they were drawn
    answered: int
    cannot_tell: int  # answers that say nothing, of those
    none_of_these: int  # images of no class: every prediction is wrong there
    plan: str  # digest of the drawing
    sentence: str  # the verdict on the baseline and the model to take
    accuracies: list[Accuracy]
    comparisons: list[Comparison]

    def accuracy(self, method: str) -> Accuracy | None:
        """The accuracy of the run that stands for a method."""
        return next((one for one in self.accuracies if one.method == method), None)


def read_audit(path: str) -> Audit:
    """The audit of a dataset, from its JSON file.

    Raises:
        UserError: the file is missing, or not as `latteclip audit --score` writes it.
    """
    try:
        return from_values(Audit, read_object(path, ["dataset"]))
    except UserError as error:
        raise UserError(f"{path} is not as latteclip audit --score writes it: {error}") from None


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
