"""Near-duplicates on a dataset's page: how many, a few of them, and what they do to accuracies.

A test image that has a twin among the training images leaks: its accuracy is not that of a new one.

Letters: S seeds, N evaluated images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb
from latteclip.report.pictures import Picture, picture
from latteclip.report.runs import Evaluated, RunFiles, TrainingSplit, read_predictions

SHOWN = 6  # pairs with pictures, from the most alike to the least
SIDE, BYTES = 168, 8_000
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Twins:
    """A pair with its pictures."""

    image_ids: tuple[str, str]
    pictures: list[Picture]  # two
    distance: float


@dataclass(frozen=True)
class WithoutLeaks:
    """The accuracy of a method in percent, and that on the test images that do not leak."""

    method: str
    acc1: float
    without: float


@dataclass(frozen=True)
class Duplicates:
    """What a page says of them."""

    training: int  # pairs within the training images
    test: int  # pairs within the test split
    between: int  # pairs of a training and a test image
    leaked: int  # test images
    accuracies: list[WithoutLeaks]  # none where no label is known, or nothing leaks or stays
    examples: list[Twins]

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.training + self.test + self.between


def read_duplicates(
    path: str, train: TrainingSplit, evaluated: Evaluated, run_files: Sequence[RunFiles]
) -> Duplicates:
    """What a DUPLICATES table says of a dataset and its runs.

    Raises:
        UserError: a file is missing or of other images.
    """
    table, _ = tables.read(path, tables.DUPLICATES)
    tests = evaluated if evaluated.is_test_split else None
    path_of = dict(zip(train.image_ids, train.paths, strict=True))
    tested = dict(zip(tests.image_ids, tests.paths, strict=True)) if tests else {}
    pairs = list(zip(table["image_id"].to_pylist(), table["twin_id"].to_pylist(), strict=True))
    strange = next((one for pair in pairs for one in pair if one not in path_of | tested), None)
    if strange:
        raise UserError(f"{path} names {strange!r}, which the index lacks; rerun find_duplicates.")
    kinds = [(one in tested) + (other in tested) for one, other in pairs]
    leaked = {
        one
        for pair, kind in zip(pairs, kinds, strict=True)
        for one in pair
        if kind == 1 and one in tested
    }
    return Duplicates(
        *(kinds.count(kind) for kind in (0, 2, 1)),
        len(leaked),
        _accuracies(evaluated, np.isin(evaluated.image_ids, list(leaked)), run_files),
        _examples(pairs, table["distance"].to_numpy(), path_of | tested),
    )


def _accuracies(
    evaluated: Evaluated, leaked: npt.NDArray[np.bool_], run_files: Sequence[RunFiles]
) -> list[WithoutLeaks]:
    """Of each method, the mean over its seeds; `leaked` [N]."""
    if evaluated.labels is None or not leaked.any() or leaked.all():
        return []
    found = []
    for method in dict.fromkeys(run.method for run in run_files):
        paths = [run.predictions for run in run_files if run.method == method and run.predictions]
        if paths:
            right = read_predictions(paths, evaluated)[0] == evaluated.labels  # [S, N]
            both = (100 * float(part.mean()) for part in (right, right[:, ~leaked]))
            found.append(WithoutLeaks(method, *both))
    return found


def _examples(
    pairs: Pairs, distances: npt.NDArray[np.float32], path_of: dict[str, str]
) -> list[Twins]:
    """Pairs from the most alike to the least, evenly spread."""
    order = np.argsort(distances, kind="stable")
    spread = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))
    return [
        Twins(pairs[i], [_picture(path_of[one]) for one in pairs[i]], float(distances[i]))
        for i in order[spread]
    ]


def _picture(path: str) -> Picture:
    return picture(open_rgb(path, max_side=SIDE), SIDE, BYTES)
