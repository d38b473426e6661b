"""The images of an audit: those that may be drawn, what models predict of them, and their order.

Every prefix of the order is a stratified sample. Letters: N images, K runs, H strata.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import sha256
from latteclip.core.run_options import run_command
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate.results import (
    MISSING,
    Run,
    RunFiles,
    pool_seeds,
    predicted_classes,
    read_metrics,
)
from latteclip.labels.answers import CHECK, AnswerSchema, locate

Ints = npt.NDArray[np.int_]
BASELINES = ("zero_shot", "zero_shot_adapted")  # which need no model of their own
SEED = 0
TEST = "test"  # the split that no model learned from
TRAIN = "train"
# How often an image is drawn on which all runs agree, and on which some disagree. Where they agree,
# an answer says nothing about their difference. After Neyman (1934), rates are proportional to
# standard deviations.
RATES = np.array([0.3, 1.0])  # [H]


@dataclass(frozen=True)
class SamplingPlan:
    """The order in which the N images of an audit are asked about, of those that are there."""

    split: str  # test, or train for the images of the training and validation splits
    classnames: list[str]  # the names of the classes as they are now
    images: pa.Table  # N rows of the index
    strata: Ints  # [N]
    order: Ints  # [N]: rows of the images by position
    digest: str  # digest of the plan's file

    def schema(self) -> AnswerSchema:
        """Return what answers to this plan may name. Of equal images the first is found first."""
        images = self.images.take(pa.array(self.order))
        return AnswerSchema(images, self.classnames, self.digest)


def audit_files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the places of a split's plan, and of the answers to it, in a dataset's results."""
    place = folder / "audit" / split
    return place / "plan.parquet", place / "answers.json"


def runs_in(folder: Path) -> list[RunFiles]:
    """Return the evaluated runs of a dataset's results: baselines first, then by name."""
    names = ("metrics.json", "train_predictions.parquet", "predictions.parquet")
    runs = []
    for metrics in folder.glob("*/seed*/metrics.json"):
        place = metrics.parent
        files = [str(place / name) for name in names]
        runs.append(
            RunFiles(place.parent.name, int(place.name.removeprefix("seed")), *files)
        )
    return sorted(runs, key=lambda run: (run.method not in BASELINES, run.run))


def read_predictions(
    runs: Sequence[RunFiles],
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    split: str,
) -> dict[Run, Ints]:
    """Return what runs predict of images [N], MISSING where all seeds of a method learned from one.

    Left out are runs that read labels, that have other classes, or that predict none of the images.
    """
    predicted: dict[Run, Ints] = {}
    for run in runs:
        path = run.predictions if split == TEST else run.train_predictions
        has_classes = tables.read_metadata(path, ClassesMetadata).classnames == [
            *classnames
        ]
        if has_classes and "supervised" not in read_metrics(run.metrics)["flags"]:
            predicted[run.run] = predicted_classes(path, image_ids)
    if split != TEST:
        methods = [method for method, _ in predicted]
        pooled = pool_seeds([*predicted.values()], methods)
        predicted = dict(zip(predicted, pooled, strict=True))
    return {run: row for run, row in predicted.items() if (row != MISSING).any()}


def draw_plan(folder: Path, index: pa.Table, classnames: Sequence[str], split: str) -> None:
    """Draw the order of the images of an index that models can be compared by, or raise UserError.

    All models predict them, none learned from them, and `latteclip teach` did not ask about them to
    teach.
    """
    image_ids = index["image_id"]
    predicted = read_predictions(runs_in(folder), image_ids, classnames, split)
    saved = AnswerSchema(index, classnames).read(folder / "answers.json")
    taught = [a.image_id for a in saved.asked.values() if a.phase != CHECK]
    known = pc.invert(pc.is_in(image_ids, pa.array(taught, pa.string()))).to_numpy()
    for classes in predicted.values():
        known = known & (classes != MISSING)
    if not (predicted and known.any()):
        raise UserError(
            f"{folder} has no {split} images that all models predict and none learned from. Run "
            f"the workflow first: {run_command(folder)}. Trainings leave out images where "
            "selection.share is above 0 and there are at least 100 to leave out."
        )
    index = index.filter(pa.array(known))
    strata = stratify(np.stack([*predicted.values()])[:, known])
    columns = {
        "image_id": index["image_id"],
        "checksum": index["checksum"],
        "stratum": strata,
        "turn": sampling_order(strata, np.random.default_rng(SEED)),
    }
    plan, _ = audit_files(folder, split)
    tables.write(plan, columns, tables.PLAN)


def of_split(index: pa.Table, split: str) -> pa.Table:
    """Return the images of an index that are in the test split, or those that are not."""
    is_test = pc.equal(index["split"], "test")
    return index.filter(is_test if split == TEST else pc.invert(is_test))


def read_plan(path: str | Path, index: pa.Table, classnames: Sequence[str]) -> SamplingPlan:
    """Read what a plan says of the images that an index still has.

    The rest is a stratified sample as before, for no image is gone because of an answer.
    """
    split = Path(path).parent.name
    table = tables.read(path)
    contents = [checksum.hex() for checksum in table["checksum"].to_pylist()]
    index = of_split(index, split)
    rows = locate(list(zip(table["image_id"].to_pylist(), contents, strict=True)), index)
    table = table.filter(pc.is_valid(rows))
    return SamplingPlan(
        split=split,
        classnames=list(classnames),
        images=index.take(rows.drop_null()),
        strata=table["stratum"].to_numpy().astype(np.int_),
        order=np.argsort(table["turn"].to_numpy()),
        digest=sha256(path)[:16],
    )


def stratify(predictions: Ints) -> Ints:
    """Return whether runs disagree on each image [N], 1 or 0, by their predictions [K, N]."""
    return np.asarray((predictions != predictions[0]).any(axis=0), np.int_)


def sampling_order(strata: Ints, rng: np.random.Generator) -> Ints:
    """Return the position of each image [N].

    The images of a stratum are in random order, and strata take turns at their rates. So the
    first n images are a simple random sample of each stratum, whatever n is.
    """
    due = np.empty(len(strata))
    for h in np.unique(strata):
        rows = np.flatnonzero(strata == h)
        n = len(rows)
        due[rows] = (rng.permutation(n) + rng.random()) / (n * RATES[h])
    return np.argsort(np.argsort(due, kind="stable"))
