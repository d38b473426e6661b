"""The images of an audit: those that may be drawn, what models predict of them, and their order.

Every prefix of the order is a stratified sample. Letters: N images, K candidates, H strata.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest
from latteclip.core.metadata import ClassesMetadata
from latteclip.core.run_options import run_command
from latteclip.evaluate.results import Run, read_selection
from latteclip.evaluate.train_predictions import MISSING, pool_seeds
from latteclip.labels.answers import CHECK, AnswerSchema, locate, teaching_schema

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
BASELINE = "zero_shot"
BASELINES = (BASELINE, "zero_shot_adapted")  # which need no model of their own
# The tables of a run.
TABLES = ("predictions.parquet", "left_out.parquet", "train_predictions.parquet")
SEED = 0
TEST = "test"  # the split that no model learned from
TRAIN = "train"
# The strata, and how often an image of each is drawn in comparison with the last. Where candidates
# agree, an answer says nothing about their difference, and less about their accuracies the surer
# they are. After Neyman (1934), rates are proportional to standard deviations.
STRATA = {
    "all agree, sure": 0.3,
    "all agree, not sure": 0.45,
    "others disagree": 0.7,
    "baseline and model disagree": 1.0,
}
RATES = np.array(list(STRATA.values()))  # [H]
# A stratum that would get fewer of the first PREFIX images is joined with the next.
MIN_IMAGES = 5
PREFIX = 50
# Share of a plan's images that a run may leave unpredicted: later, they are left out.
MAX_MISSING = 0.1


@dataclass(frozen=True)
class RunFiles:
    """The files of a run."""

    method: str
    seed: int
    metrics: str
    predictions: str | None  # predictions of the images that are evaluated
    # Predictions of training images, among them those that the run did not learn from.
    train_predictions: str | None

    @property
    def run(self) -> Run:
        return self.method, self.seed

    def predictions_of(
        self, image_ids: pa.ChunkedArray, classnames: Sequence[str], split: str
    ) -> Ints:
        """Return classes [n], or MISSING for images that the run learned from or does not predict.

        A table of other classes is ignored.
        """
        is_trained_on = split != TEST and self.train_predictions is not None
        path = self.train_predictions if is_trained_on else self.predictions
        missing = np.full(len(image_ids), MISSING)
        if path is None:
            return missing
        if tables.read_metadata(path, ClassesMetadata).classnames != list(classnames):
            return missing
        schema = tables.TRAIN_PREDICTIONS if is_trained_on else tables.PREDICTIONS
        table = tables.read(path, schema, ["image_id", "prediction"])
        predicted = table["prediction"].take(pc.index_in(image_ids, table["image_id"]))
        return np.asarray(predicted.fill_null(MISSING).to_numpy(), np.int_)


def predictions_of(
    runs: Sequence[RunFiles],
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    split: str,
) -> list[Ints]:
    """Return what each run predicts [n], MISSING where all seeds of its method learned from it."""
    own = [run.predictions_of(image_ids, classnames, split) for run in runs]
    return own if split == TEST else pool_seeds(own, [run.method for run in runs])


@dataclass
class PlanMetadata:
    """The metadata of PLAN."""

    split: str  # test, or train for the images of the training and validation splits
    seed: int  # seed of the drawing


@dataclass(frozen=True)
class Population:
    """The images of a dataset that may be drawn, and the candidates' predictions."""

    dataset: str
    split: str
    classnames: list[str]
    image_ids: list[str]  # N
    paths: list[str]
    checksums: list[bytes]
    candidates: list[Run]  # K: one run for each method
    # [N, K], MISSING where a candidate does not predict an image of a plan
    predictions: Ints
    ranked: Ints  # [N, T] the pretrained model's best classes, best first
    confidence: Floats  # [N], of the first of them
    model: int  # the candidate whose difference to the first, the baseline, matters most

    @property
    def images(self) -> pa.Table:
        """Return the images as an index has them."""
        splits = pa.array([self.split] * len(self.image_ids), pa.string())
        return _images(self.image_ids, self.checksums).append_column("split", splits)


@dataclass(frozen=True)
class SamplingPlan:
    """The order in which the N images of an audit are asked about, of those that are there."""

    split: str
    classnames: list[str]  # the names of the classes as they are now
    image_ids: list[str]  # N, of now
    strata: Ints  # [N]
    order: Ints  # [N]: rows of the images by position
    digest: str  # digest of the plan's file
    checksums: list[bytes] = field(default_factory=list)  # N

    def schema(self, dataset: str) -> AnswerSchema:
        """Return what answers to this plan may name. Of equal images the first is found first."""
        images = _images(self.image_ids, self.checksums).take(pa.array(self.order))
        return AnswerSchema(self.digest, dataset, images, tuple(self.classnames))


def _images(image_ids: Sequence[str], checksums: Sequence[bytes]) -> pa.Table:
    names = pa.chunked_array([image_ids], pa.string())
    return pa.table({"image_id": names, "checksum": pa.array(checksums, pa.binary(16))})


def audit_files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the places of a split's plan, and of the answers to it, in a dataset's results."""
    place = folder / "audit" / split
    return place / "plan.parquet", place / "answers.json"


def read_population(folder: str | Path, split: str | None = None) -> Population:
    """Read the images of a split with what one run of each method predicts, or raise UserError.

    Without a split, it is test where there are test images. Training images are those that no model
    learned from, and about which `latteclip teach` did not ask to teach. Where images are planned
    already, these are read that are still there, and methods that do not predict most of them are
    left out.
    """
    folder = Path(folder)
    index, classnames = tables.read_unlabelled(folder / "images.parquet", training=False)
    is_test = pc.equal(index["split"], "test")
    if split is None:
        split = TEST if pc.any(is_test).as_py() else TRAIN
    chosen = chosen_run(folder)
    plan, _ = audit_files(folder, split)
    if plan.exists():  # images that came later are no part of the audit
        planned = pa.array(read_plan(plan, index, classnames).image_ids, pa.string())
        if not len(planned):
            raise UserError(
                f"{plan} is about images that are all gone; move the folder {plan.parent} away to "
                "begin a new audit."
            )
        index = index.take(pc.index_in(planned, index["image_id"]))
    else:
        index = index.filter(is_test if split == TEST else pc.invert(is_test))
    predicted = _candidates(folder, index["image_id"], classnames, chosen, split)
    if plan.exists():
        predicted = {
            run: classes for run, classes in predicted.items() if predicts_most(classes)
        }
        known = np.full(len(index), bool(predicted))
    else:
        known = np.all([classes != MISSING for classes in predicted.values()], axis=0)
        known &= ~_taught(folder, index, classnames)
    if not (predicted and known.any()):
        raise UserError(
            f"{folder} has no {split} images that all models predict and none learned from. Run "
            f"the workflow first: {run_command(folder)}. Trainings leave out images where "
            "selection.share is above 0 and there are at least 100 to leave out."
        )
    index = index.filter(known)
    ids = index["image_id"]
    predictions = np.stack([*predicted.values()], axis=1)[known]
    candidates = list(predicted)
    differ = (predictions != predictions[:, :1]).sum(axis=0)  # from the baseline
    lookup = partial(
        tables.lookup_column,
        folder / "pseudo_labels.parquet",
        tables.PSEUDO_LABELS,
        "image_id",
        ids=ids,
    )
    ranked = tables.from_list_column(lookup(column="topk_labels"))
    confidence = lookup(column="confidence").to_numpy().astype(np.float64)
    model = candidates.index(chosen) if chosen in candidates[1:] else int(differ.argmax())
    return Population(
        dataset=folder.absolute().name,
        split=split,
        classnames=classnames,
        image_ids=ids.to_pylist(),
        paths=index["path"].to_pylist(),
        checksums=index["checksum"].to_pylist(),
        candidates=candidates,
        predictions=predictions,
        ranked=ranked,
        confidence=confidence,
        model=model,
    )


def predicts_most(predictions: Ints) -> bool:
    """Return whether a run predicts most images of a plan.

    It may have learned from a few of them, whose files were renamed after the drawing.
    """
    return bool((predictions == MISSING).sum() <= MAX_MISSING * len(predictions))


def runs_in(folder: Path) -> list[RunFiles]:
    """Return the runs of a dataset's results: baselines first, then by name."""
    runs = []
    for run_folder in folder.glob("*/seed*"):
        method = run_folder.parent.name
        number = run_folder.name.removeprefix("seed")
        files = [
            str(run_folder / name) if (run_folder / name).is_file() else None
            for name in TABLES
        ]
        if number.isdecimal() and any(files):
            evaluated, averaged, trained = files
            run = RunFiles(
                method=method,
                seed=int(number),
                metrics=str(run_folder / "metrics.json"),
                predictions=evaluated,
                train_predictions=averaged or trained,
            )
            runs.append(run)
    return sorted(runs, key=lambda run: (run.method not in BASELINES, run.run))


def chosen_run(folder: Path) -> Run | None:
    """Return the run that the workflow chose, if it chose."""
    path = folder / "selection.json"
    return read_selection(path).run if path.is_file() else None


def _candidates(
    folder: Path,
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    chosen: Run | None,
    split: str,
) -> dict[Run, Ints]:
    """Return what one run of each method predicts, of the chosen seed where there is such a run."""
    runs = runs_in(folder)
    all_predictions = predictions_of(runs, image_ids, classnames, split)
    run_of_method: dict[str, tuple[Run, Ints]] = {}
    for run, predictions in zip(runs, all_predictions, strict=True):
        is_chosen = chosen is not None and run.seed == chosen[1]
        is_wanted = run.method not in run_of_method or is_chosen
        if is_wanted and (predictions != MISSING).any():
            run_of_method[run.method] = run.run, predictions
    return dict(run_of_method.values())


def _taught(
    folder: Path, index: pa.Table, classnames: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Return the mask [N] of the images whose answers were asked for to teach the labels."""
    schema = teaching_schema(folder.absolute().name, classnames, index)
    saved = schema.read(folder / "answers.json")
    taught = [a.image_id for a in saved.asked.values() if a.phase != CHECK]
    is_taught = pc.is_in(index["image_id"], pa.array(taught, pa.string()))
    return np.asarray(is_taught.to_numpy(), bool)


def read_plan(path: str | Path, index: pa.Table, classnames: Sequence[str]) -> SamplingPlan:
    """Read what a plan says of the images that an index still has, or raise UserError.

    The rest is a stratified sample as before, for no image is gone because of an answer.
    """
    table = tables.read(path, tables.PLAN)
    split = tables.read_metadata(path, PlanMetadata).split
    ids = table["image_id"].to_pylist()
    contents = [checksum.hex() for checksum in table["checksum"].to_pylist()]
    strata, turn = (table[name].to_numpy().astype(np.int_) for name in ("stratum", "turn"))
    order = np.stack([strata, turn]).astype("<i8").tobytes()
    identity = digest(split, order, *ids, *contents)[:16]
    is_test = pc.equal(index["split"], "test")
    index = index.filter(is_test if split == TEST else pc.invert(is_test))
    rows = locate(list(zip(ids, contents, strict=True)), index)
    is_there = np.array([row is not None for row in rows], dtype=bool)
    planned = index.take(pa.array([row for row in rows if row is not None], pa.int64()))
    return SamplingPlan(
        split,
        list(classnames),
        planned["image_id"].to_pylist(),
        strata[is_there],
        np.argsort(turn[is_there]),
        identity,
        planned["checksum"].to_pylist(),
    )


def read_or_draw(path: Path, population: Population) -> SamplingPlan:
    """Read the plan of an audit, or draw it."""
    if not path.exists():
        strata = stratify(population)
        turn = sampling_order(strata, np.random.default_rng(SEED))
        columns = {"stratum": strata, "turn": turn}
        columns |= {name: population.images[name] for name in ("image_id", "checksum")}
        tables.write(path, columns, tables.PLAN, PlanMetadata(population.split, SEED))
    return read_plan(path, population.images, population.classnames)


def stratify(population: Population) -> Ints:
    """Return the stratum of each image [N]: whether candidates disagree, and how sure CLIP is."""
    predictions = population.predictions
    agree = (predictions == predictions[:, :1]).all(axis=1)
    disputed = predictions[:, 0] != predictions[:, population.model]
    strata: Ints = np.where(disputed, 3, np.where(agree, 0, 2))
    if agree.any():
        sure = population.confidence >= np.median(population.confidence[agree])
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
