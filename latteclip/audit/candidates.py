"""What the models of a run say of the images that an audit draws from.

Letters: N images, K candidates, C classes.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate.judged import JUDGED
from latteclip.evaluate.results import Run, read_selection

log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
BASELINE = "zero_shot"
FIRST = (BASELINE, "zero_shot_calibrated")  # of the candidates
SPLITS = ("test", "train")
# What a run says of the images that are evaluated, and of training images left out: the table in
# its folder, and the schema.
Said = tuple[str, pa.Schema]
OF_EVALUATED: Said = ("predictions.parquet", tables.PREDICTIONS)
OF_LEFT_OUT: Said = ("judged.parquet", JUDGED)


@dataclass(frozen=True, order=True)
class Candidate:
    """A run whose predictions are audited: of each method, one."""

    method: str
    seed: int


@dataclass(frozen=True)
class Audited:
    """The images of a dataset that may be drawn, and what the candidates say of them."""

    dataset: str
    split: str
    classnames: list[str]
    image_ids: list[str]  # N
    paths: list[str]
    candidates: list[Candidate]  # K
    predictions: Ints  # [N, K]
    ranked: Ints  # [N, T] the pretrained model's best classes, best first
    confidence: Floats  # [N], of the first of them
    pair: tuple[int, int]  # candidates whose difference matters most: the baseline, and the model


def read(
    folder: str | Path,
    split: str | None = None,
    planned: Callable[[str], list[str] | None] = lambda split: None,
) -> Audited:
    """The images of a split with the predictions of every method that was run.

    A method stands for itself by the run that was chosen, or else by its first seed. Beside a test
    split, those training images are taken that no candidate learned from. Without one, all are: it
    is their labels that are wanted.

    Args:
        folder: of a dataset's results.
        split: test or train; None: test where it has images.
        planned: from the split the images of an audit that was begun; None: there is none. Methods
            that do not say something of all of them came later, and are left out.

    Raises:
        UserError: there is nothing to audit, or a file is missing or of other images.
    """
    folder = Path(folder)
    index, classnames = tables.read_unlabelled(folder / "images.parquet", training=False)
    is_test = pc.equal(index["split"], "test")
    has_tests = pc.any(is_test).as_py()
    split = split or ("test" if has_tests else "train")
    table = OF_LEFT_OUT if has_tests and split == "train" else OF_EVALUATED
    index = index.filter(is_test if split == "test" else pc.invert(is_test))
    images = planned(split)
    if images:  # those that came later are no part of the audit
        index = index.filter(pc.is_in(index["image_id"], pa.array(images)))
    chosen = _chosen(folder)
    candidates = _candidates(folder, table[0], chosen)
    said = [_predictions(folder, table, one, classnames) for one in candidates]
    if images:
        candidates, said = _that_cover(images, candidates, said)
    rows = _in_all(index, said)
    if not len(rows):
        raise UserError(
            f"{folder} has no training images that may be asked about: beside a test split those "
            "that no model learned from are, and of few images none is left out (selection.share)."
            if table is OF_LEFT_OUT
            else f"{folder} has no {split} images of which all its models say something."
        )
    index = index.take(rows)
    ids = index["image_id"].to_pylist()
    predictions = np.stack([_of(table, index["image_id"]) for table in said], axis=1)
    ranked, confidence = _zero_shot(folder, ids)
    return Audited(
        folder.absolute().name,
        split,
        classnames,
        ids,
        index["path"].to_pylist(),
        candidates,
        predictions,
        ranked,
        confidence,
        _pair(candidates, predictions, chosen),
    )


def _chosen(folder: Path) -> Candidate | None:
    """The run whose model is the one to take, where one was chosen."""
    path = folder / "selection.json"
    if not path.is_file():
        return None
    selection = read_selection(path)
    return Candidate(selection.method, selection.seed)


def left_out(folder: Path) -> Path:
    """Return the table of what a run predicts of training images that it did not learn from."""
    of_average = folder / "left_out.parquet"
    return of_average if of_average.is_file() else folder / OF_LEFT_OUT[0]


def runs(folder: Path, name: str = OF_EVALUATED[0]) -> list[Run]:
    """Return the runs that have a table of a name: the baselines first, then by name."""
    found = []
    for path in folder.glob(f"*/seed*/{name}"):
        number = path.parent.name.removeprefix("seed")
        if number.isdecimal():
            found.append((path.parent.parent.name, int(number)))
    place = {method: number for number, method in enumerate(FIRST)}
    return sorted(found, key=lambda one: (place.get(one[0], len(FIRST)), one))


def _candidates(folder: Path, name: str, chosen: Candidate | None) -> list[Candidate]:
    """Return one run of each method that has a table of a name.

    Of each method that seed is taken which the chosen model has, for each seed leaves out other
    training images; or else the first one.
    """
    found: dict[str, Candidate] = {}
    for run in runs(folder, name):
        one = Candidate(*run)
        if one.method not in found or (chosen and one.seed == chosen.seed):
            found[one.method] = one
    if not found:
        raise UserError(
            f"{folder} has no predictions of the images yet; run the workflow first: "
            f"snakemake -j4 --config dataset={folder.absolute().name}."
        )
    return list(found.values())


def _predictions(folder: Path, said: Said, one: Candidate, classnames: Sequence[str]) -> pa.Table:
    """Image ids and predictions of a run, without labels."""
    name, schema = said
    path = folder / one.method / f"seed{one.seed}" / name
    if said == OF_LEFT_OUT:
        path = left_out(path.parent)
    table, described = tables.read(path, schema, ["image_id", "prediction"])
    if described.get("classnames") != list(classnames):
        raise UserError(f"{path} is of other classes than the image index; rerun its stage.")
    return table


def _that_cover(
    images: list[str], candidates: list[Candidate], said: list[pa.Table]
) -> tuple[list[Candidate], list[pa.Table]]:
    """The candidates that say something of all these images, and what; or all if none does."""
    covers = [pc.all(pc.is_in(pa.array(images), table["image_id"])).as_py() for table in said]
    if not any(covers):
        return candidates, said
    covered = list(compress(candidates, covers))
    if left_out := [one.method for one in candidates if one not in covered]:
        log.warning(
            "%s: of some images of the audit that was begun these say nothing, and are left out.",
            ", ".join(left_out),
        )
    return covered, list(compress(said, covers))


def _in_all(index: pa.Table, said: Sequence[pa.Table]) -> Ints:
    """The rows of the index of which every candidate says something."""
    common = np.ones(len(index), dtype=bool)
    for table in said:
        common &= pc.is_in(index["image_id"], table["image_id"]).to_numpy()
    return np.flatnonzero(common)


def _of(table: pa.Table, image_ids: pa.ChunkedArray) -> Ints:
    """The predictions of images [N]."""
    rows = pc.index_in(image_ids, table["image_id"])
    found: Ints = pc.take(table["prediction"], rows).to_numpy().astype(np.int_)
    return found


def _zero_shot(folder: Path, image_ids: Sequence[str]) -> tuple[Ints, Floats]:
    """Of the pretrained model the best classes [N, T], and the confidence in the first [N]."""
    path = folder / "pseudo_labels.parquet"
    ranked, confidence = (
        tables.lookup(path, tables.PSEUDO_LABELS, "image_id", column, image_ids)
        for column in ("topk_labels", "confidence")
    )
    return np.array(ranked, dtype=np.int_), np.array(confidence, dtype=np.float64)


def _pair(
    candidates: Sequence[Candidate], predictions: Ints, chosen: Candidate | None
) -> tuple[int, int]:
    """The baseline and the model to take: the chosen one, or else what differs most."""
    if chosen in candidates[1:]:
        return 0, candidates.index(chosen)
    return 0, int((predictions != predictions[:, :1]).sum(axis=0).argmax())
