"""Near-duplicates on a dataset's page: how many, a few of them, and what they do to accuracies.

A test image that has a twin among the training images leaks: its accuracy is not that of a new one.

Letters: S seeds, N test images, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.errors import DELETE_AND_RERUN, UserError
from latteclip.report.pictures import Picture, picture_of
from latteclip.report.runs import Ints, RunFiles, Split, read_labels

SHOWN = 6  # pairs with pictures, from the most alike to the least
SIDE, BYTES = 168, 8_000


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
    path: str, train: Split, test: Split, run_files: Sequence[RunFiles]
) -> Duplicates:
    """What a DUPLICATES table says of a dataset and its runs.

    Raises:
        UserError: a file is missing or of other images.
    """
    table, _ = tables.read(path, tables.DUPLICATES)
    names = [table["image_id"], table["twin_id"]]
    in_test = np.stack([test.places(one) for one in names])  # [2, P]
    in_train = np.stack([train.places(one) for one in names])
    strange = np.argwhere((in_test < 0) & (in_train < 0))
    if len(strange):
        column, row = strange[0].tolist()
        name = names[column][row].as_py()
        raise UserError(f"{path} names {name!r}, which the index lacks; {DELETE_AND_RERUN}.")
    kinds = (in_test >= 0).sum(axis=0)  # how many of each pair are of the test split
    leaked = np.zeros(len(test), np.bool_)
    leaked[in_test[(in_test >= 0) & (kinds == 1)]] = True
    return Duplicates(
        training=int((kinds == 0).sum()),
        test=int((kinds == 2).sum()),
        between=int((kinds == 1).sum()),
        leaked=int(leaked.sum()),
        accuracies=_accuracies(test, leaked, run_files),
        examples=_examples(table, train, test, in_test, in_train),
    )


def _accuracies(
    test: Split, leaked: npt.NDArray[np.bool_], run_files: Sequence[RunFiles]
) -> list[WithoutLeaks]:
    """Of each method, the mean over its seeds; `leaked` [N]."""
    if test.labels is None or not leaked.any() or leaked.all():
        return []
    found = []
    for method in dict.fromkeys(run.method for run in run_files):
        paths = [run.predictions for run in run_files if run.method == method]
        right = np.stack([read_labels(path, test) == test.labels for path in paths])  # [S, N]
        both = (100 * float(part.mean()) for part in (right, right[:, ~leaked]))
        found.append(WithoutLeaks(method, *both))
    return found


def _examples(
    table: pa.Table, train: Split, test: Split, in_test: Ints, in_train: Ints
) -> list[Twins]:
    """Pairs from the most alike to the least, evenly spread."""
    distances = table["distance"].to_numpy()
    order = np.argsort(distances, kind="stable")
    spread = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))
    found = []
    for i in order[spread].tolist():
        paths = [
            test.path(tested) if tested >= 0 else train.path(trained)
            for tested, trained in zip(in_test[:, i].tolist(), in_train[:, i].tolist(), strict=True)
        ]
        names = (str(table["image_id"][i]), str(table["twin_id"][i]))
        pictures = [picture_of(path, SIDE, BYTES) for path in paths]
        found.append(Twins(names, pictures, float(distances[i])))
    return found
