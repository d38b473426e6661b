"""The images of an audit: those that may be drawn, what models predict of them, and their order.

Every prefix of the order is a stratified sample. Letters: N images, K candidates, H strata.
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
from latteclip.core.files import digest
from latteclip.core.run_options import run_command
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate.predictions import MISSING, classes_of, pool_seeds
from latteclip.evaluate.results import Run, read_selection
from latteclip.labels.answers import CHECK, AnswerSchema, locate, teaching_schema

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
BASELINE = "zero_shot"
BASELINES = (BASELINE, "zero_shot_adapted")  # which need no model of their own
SEED = 0
TEST = "test"  # the split that no model learned from
TRAIN = "train"
# The strata, and how often an image of each is drawn in comparison with the last. Where candidates
# agree, an answer says nothing about their difference, and less about their accuracies the surer
# they are. After Neyman (1934), rates are proportional to standard deviations.
RATES = np.array(
    [
        0.3,  # all agree, and CLIP is sure
        0.45,  # all agree, and CLIP is not sure
        0.7,  # others disagree
        1.0,  # the baseline and the model disagree
    ]
)  # [H]
# A stratum that would get fewer of the first PREFIX images is joined with the next.
MIN_IMAGES = 5
PREFIX = 50


@dataclass(frozen=True)
class RunFiles:
    """The files of a run."""

    method: str
    seed: int
    metrics: str
    predictions: str  # of the images that are evaluated
    train_predictions: str  # of training images that the run did not learn from

    @property
    def run(self) -> Run:
        return self.method, self.seed


@dataclass
class PlanMetadata:
    """The metadata of PLAN."""

    split: str  # test, or train for the images of the training and validation splits


@dataclass(frozen=True)
class SamplingPlan:
    """The order in which the N images of an audit are asked about, of those that are there."""

    split: str
    classnames: list[str]  # the names of the classes as they are now
    images: pa.Table  # N rows of the index
    strata: Ints  # [N]
    order: Ints  # [N]: rows of the images by position
    digest: str  # digest of the plan's file

    def schema(self, dataset: str) -> AnswerSchema:
        """Return what answers to this plan may name. Of equal images the first is found first."""
        images = self.images.take(pa.array(self.order))
        return AnswerSchema(self.digest, dataset, images, tuple(self.classnames))


def audit_files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the places of a split's plan, and of the answers to it, in a dataset's results."""
    place = folder / "audit" / split
    return place / "plan.parquet", place / "answers.json"


def runs_in(folder: Path) -> list[RunFiles]:
    """Return the evaluated runs of a dataset's results: baselines first, then by name."""
    names = ("metrics.json", "predictions.parquet", "train_predictions.parquet")
    runs = []
    for metrics in folder.glob("*/seed*/metrics.json"):
        place = metrics.parent
        seed = int(place.name.removeprefix("seed"))
        runs.append(
            RunFiles(place.parent.name, seed, *(str(place / name) for name in names))
        )
    return sorted(runs, key=lambda run: (run.method not in BASELINES, run.run))


def predictions_of(
    runs: Sequence[RunFiles],
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    split: str,
) -> list[Ints]:
    """Return what each run predicts [n], MISSING where all seeds of its method learned from it."""
    own = [_predictions(run, image_ids, classnames, split) for run in runs]
    return own if split == TEST else pool_seeds(own, [run.method for run in runs])


def _predictions(
    run: RunFiles, image_ids: pa.ChunkedArray, classnames: Sequence[str], split: str
) -> Ints:
    """Return classes [n], MISSING without a prediction or where the table has other classes."""
    path, schema = run.predictions, tables.PREDICTIONS
    if split != TEST:
        path, schema = run.train_predictions, tables.TRAIN_PREDICTIONS
    if tables.read_metadata(path, ClassesMetadata).classnames != list(classnames):
        return np.full(len(image_ids), MISSING)
    return classes_of(tables.read(path, schema, ["image_id", "prediction"]), image_ids)


def candidates_of(
    folder: Path, image_ids: pa.ChunkedArray, classnames: Sequence[str], split: str
) -> dict[Run, Ints]:
    """Return what one run of each method predicts, of the chosen seed where there is such a run."""
    chosen = chosen_run(folder)
    runs = runs_in(folder)
    all_predictions = predictions_of(runs, image_ids, classnames, split)
    run_of_method: dict[str, tuple[Run, Ints]] = {}
    for run, predictions in zip(runs, all_predictions, strict=True):
        is_chosen = chosen is not None and run.seed == chosen[1]
        is_wanted = run.method not in run_of_method or is_chosen
        if is_wanted and (predictions != MISSING).any():
            run_of_method[run.method] = run.run, predictions
    return dict(run_of_method.values())


def chosen_run(folder: Path) -> Run | None:
    """Return the run that the workflow chose, if it chose."""
    path = folder / "selection.json"
    return read_selection(path).run if path.is_file() else None


def draw_plan(folder: Path, index: pa.Table, classnames: Sequence[str], split: str) -> None:
    """Draw the order of the images of an index that models can be compared by, or raise UserError.

    All models predict them, none learned from them, and `latteclip teach` did not ask about them to
    teach.
    """
    predicted = candidates_of(folder, index["image_id"], classnames, split)
    known = ~_taught(folder, index, classnames)
    for classes in predicted.values():
        known &= classes != MISSING
    if not (predicted and known.any()):
        raise UserError(
            f"{folder} has no {split} images that all models predict and none learned from. Run "
            f"the workflow first: {run_command(folder)}. Trainings leave out images where "
            "selection.share is above 0 and there are at least 100 to leave out."
        )
    index = index.filter(known)
    predictions = np.stack([*predicted.values()], axis=1)[known]
    runs = list(predicted)
    chosen = chosen_run(folder)
    differ = (predictions != predictions[:, :1]).sum(axis=0)  # from the baseline
    model = runs.index(chosen) if chosen in runs[1:] else int(differ.argmax())
    confidence = tables.lookup_column(
        folder / "pseudo_labels.parquet",
        tables.PSEUDO_LABELS,
        "image_id",
        "confidence",
        index["image_id"],
    )
    strata = stratify(predictions, confidence.to_numpy().astype(np.float64), model)
    turn = sampling_order(strata, np.random.default_rng(SEED))
    columns = {"stratum": strata, "turn": turn}
    columns |= {name: index[name] for name in ("image_id", "checksum")}
    plan, _ = audit_files(folder, split)
    tables.write(plan, columns, tables.PLAN, PlanMetadata(split))


def _taught(
    folder: Path, index: pa.Table, classnames: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Return the mask [N] of the images whose answers were asked for to teach the labels."""
    schema = teaching_schema(folder.absolute().name, classnames, index)
    saved = schema.read(folder / "answers.json")
    taught = [a.image_id for a in saved.asked.values() if a.phase != CHECK]
    is_taught = pc.is_in(index["image_id"], pa.array(taught, pa.string()))
    return np.asarray(is_taught.to_numpy(), bool)


def of_split(index: pa.Table, split: str) -> pa.Table:
    """Return the images of an index that are in the test split, or those that are not."""
    is_test = pc.equal(index["split"], "test")
    return index.filter(is_test if split == TEST else pc.invert(is_test))


def read_plan(path: str | Path, index: pa.Table, classnames: Sequence[str]) -> SamplingPlan:
    """Read what a plan says of the images that an index still has.

    The rest is a stratified sample as before, for no image is gone because of an answer.
    """
    table = tables.read(path, tables.PLAN)
    split = tables.read_metadata(path, PlanMetadata).split
    ids = table["image_id"].to_pylist()
    contents = [checksum.hex() for checksum in table["checksum"].to_pylist()]
    strata, turn = (table[name].to_numpy().astype(np.int_) for name in ("stratum", "turn"))
    numbers = np.stack([strata, turn]).astype("<i8").tobytes()
    identity = digest(split, numbers, *ids, *contents)[:16]
    index = of_split(index, split)
    rows = locate(list(zip(ids, contents, strict=True)), index)
    is_there = np.array([row is not None for row in rows], dtype=bool)
    images = index.take(pa.array([row for row in rows if row is not None], pa.int64()))
    order = np.argsort(turn[is_there])
    return SamplingPlan(split, list(classnames), images, strata[is_there], order, identity)


def stratify(predictions: Ints, confidence: Floats, model: int) -> Ints:
    """Return the stratum of each image [N]: whether candidates disagree, and how sure CLIP is.

    Predictions [N, K] are those of the candidates, the first of which is the baseline. Its
    difference to the candidate `model` matters most.
    """
    agree = (predictions == predictions[:, :1]).all(axis=1)
    disputed = predictions[:, 0] != predictions[:, model]
    strata: Ints = np.where(disputed, 3, np.where(agree, 0, 2))
    if agree.any():
        sure = confidence >= np.median(confidence[agree])
        strata[agree & ~sure] = 1
    # A variance cannot be estimated from a handful of images.
    n_strata = len(RATES)
    for h in range(n_strata - 1):
        expected = np.bincount(strata, minlength=n_strata) * RATES
        is_small = expected[h] * PREFIX < MIN_IMAGES * expected.sum()
        filled = np.flatnonzero(expected)
        larger = filled[filled > h]
        if is_small and len(larger):
            strata[strata == h] = larger[0]
    return strata


def sampling_order(strata: Ints, rng: np.random.Generator) -> Ints:
    """Return the position of each image [N].

    The images of a stratum are in random order, and strata take turns at their rates. So the
    first n images are a simple random sample of each stratum, whatever n is.
    """
    due = np.empty(len(strata))
    for h in np.unique(strata):
        rows = np.flatnonzero(strata == h)
        n = len(rows)
        order = rng.permutation(n)
        due[rows] = (order + rng.random()) / (n * RATES[h])
    turn = np.empty(len(strata), dtype=np.int_)
    turn[np.argsort(due, kind="stable")] = np.arange(len(strata))
    return turn
