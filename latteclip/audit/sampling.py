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
from latteclip.core.hashing import digest
from latteclip.evaluate.results import Run, read_selection
from latteclip.evaluate.train_predictions import MISSING, TRAIN_PREDICTIONS
from latteclip.labels.answers import AnswerSchema

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
BASELINE = "zero_shot"
BASELINES = (BASELINE, "zero_shot_calibrated")  # which need no model of their own
TABLES = ("predictions.parquet", "left_out.parquet", "train_predictions.parquet")  # of a run
SEED = 0
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
MIN_IMAGES, PREFIX = 5, 50
# `turn` is the position in the order, from 0.
PLAN = pa.schema({"image_id": pa.string(), "stratum": pa.int8(), "turn": pa.int32()})


@dataclass(frozen=True)
class RunFiles:
    """The files of a run."""

    method: str
    seed: int
    metrics: str
    predictions: str | None  # of the images that are evaluated
    train_predictions: str | None  # of training images that it did not learn from, among others
    has_model: bool  # that can be chosen

    @property
    def run(self) -> Run:
        return self.method, self.seed

    def predictions_of(self, image_ids: pa.ChunkedArray, classnames: Sequence[str]) -> Ints:
        """Return classes [n], or MISSING for images that the run learned from or does not predict.

        Tables of other classes are ignored. Without a test split, all images are evaluated.
        """
        found = np.full(len(image_ids), MISSING)
        files = {self.predictions: tables.PREDICTIONS, self.train_predictions: TRAIN_PREDICTIONS}
        for path, schema in files.items():
            if path is None:
                continue
            columns = [name for name in TRAIN_PREDICTIONS.names if name in schema.names]
            table, described = tables.read(path, schema, columns)
            if described.get("classnames") != list(classnames):
                continue
            if "held_out" in columns:
                table = table.filter(table["held_out"])
            predicted = table["prediction"].take(pc.index_in(image_ids, table["image_id"]))
            found = np.where(found == MISSING, predicted.fill_null(MISSING).to_numpy(), found)
        return found


@dataclass(frozen=True)
class Population:
    """The images of a dataset that may be drawn, and the candidates' predictions."""

    dataset: str
    split: str
    classnames: list[str]
    image_ids: list[str]  # N
    paths: list[str]
    candidates: list[Run]  # K: one run for each method
    predictions: Ints  # [N, K]
    ranked: Ints  # [N, T] the pretrained model's best classes, best first
    confidence: Floats  # [N], of the first of them
    model: int  # the candidate whose difference to the first, the baseline, matters most


@dataclass(frozen=True)
class SamplingPlan:
    """The order in which the N images of an audit are asked about."""

    split: str
    classnames: list[str]
    image_ids: list[str]  # N
    strata: Ints  # [N]
    order: Ints  # [N]: rows of the images by position
    digest: str  # of all the above

    def schema(self, dataset: str) -> AnswerSchema:
        """Return what answers to this plan may name."""
        return AnswerSchema(self.digest, dataset, frozenset(self.image_ids), tuple(self.classnames))


def audit_files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the places of a split's plan, and of the answers to it, in a dataset's results."""
    place = folder / "audit" / split
    return place / "plan.parquet", place / "answers.json"


def read_population(folder: str | Path, split: str | None = None) -> Population:
    """Read the images of a split with what one run of each method predicts, or raise UserError.

    Without a split, it is test where there are test images. Where images are planned already,
    methods that do not predict all of them are left out.
    """
    folder = Path(folder)
    index, classnames = tables.read_unlabelled(folder / "images.parquet", training=False)
    is_test = pc.equal(index["split"], "test")
    split = split or ("test" if pc.any(is_test).as_py() else "train")
    index = index.filter(is_test if split == "test" else pc.invert(is_test))
    chosen, (plan, _) = chosen_run(folder), audit_files(folder, split)
    if plan.exists():  # images that came later are no part of the audit
        index = index.filter(pc.is_in(index["image_id"], pa.array(read_plan(plan).image_ids)))
    predicted = _candidates(folder, index["image_id"], classnames, chosen)
    if plan.exists():  # nor are methods that do not predict all of its images
        complete = {run: found for run, found in predicted.items() if MISSING not in found}
        predicted = complete or predicted
    known = np.all([found != MISSING for found in predicted.values()], axis=0)
    if not (predicted and known.any()):
        raise UserError(
            f"{folder} has no {split} images that all models predict and none learned from; run "
            f"the workflow first: snakemake -j4 --config dataset={folder.absolute().name}."
        )
    index, ids = index.filter(known), index["image_id"].filter(known)
    predictions, candidates = np.stack([*predicted.values()], axis=1)[known], list(predicted)
    differ = (predictions != predictions[:, :1]).sum(axis=0)  # from the baseline
    scores = folder / "pseudo_labels.parquet", tables.PSEUDO_LABELS, "image_id"
    ranked = tables.from_list_column(tables.lookup_column(*scores, "topk_labels", ids))
    confidence = tables.lookup_column(*scores, "confidence", ids).to_numpy().astype(np.float64)
    model = candidates.index(chosen) if chosen in candidates[1:] else int(differ.argmax())
    name, images = folder.absolute().name, (ids.to_pylist(), index["path"].to_pylist())
    return Population(
        name, split, classnames, *images, candidates, predictions, ranked, confidence, model
    )


def runs_in(folder: Path) -> list[RunFiles]:
    """Return the runs of a dataset's results: baselines first, then by name."""
    found = []
    for place in folder.glob("*/seed*"):
        method, number = place.parent.name, place.name.removeprefix("seed")
        files = [str(place / name) if (place / name).is_file() else None for name in TABLES]
        if number.isdecimal() and any(files):
            evaluated, averaged, trained = files
            has_model = (place / "model").is_dir() or method in BASELINES
            tables_of = str(place / "metrics.json"), evaluated, averaged or trained
            found.append(RunFiles(method, int(number), *tables_of, has_model))
    return sorted(found, key=lambda one: (one.method not in BASELINES, one.run))


def chosen_run(folder: Path) -> Run | None:
    """Return the run that the workflow chose, if it chose."""
    path = folder / "selection.json"
    return read_selection(path).run if path.is_file() else None


def _candidates(
    folder: Path, image_ids: pa.ChunkedArray, classnames: Sequence[str], chosen: Run | None
) -> dict[Run, Ints]:
    """Return what one run of each method predicts, of the chosen seed where there is such a run."""
    found: dict[str, tuple[Run, Ints]] = {}
    for one in runs_in(folder):
        if one.method not in found or (chosen and one.seed == chosen[1]):
            predictions = one.predictions_of(image_ids, classnames)
            if (predictions != MISSING).any():
                found[one.method] = one.run, predictions
    return dict(found.values())


def read_plan(path: str | Path) -> SamplingPlan:
    """Read a plan, or raise UserError."""
    table, described = tables.read(path, PLAN)
    split, classnames = described["split"], described["classnames"]
    ids: list[str] = table["image_id"].to_pylist()
    strata, turn = (table[name].to_numpy().astype(np.int_) for name in ("stratum", "turn"))
    order = np.stack([strata, turn]).astype("<i8").tobytes()
    identity = digest(split, order, *classnames, *ids)[:16]
    return SamplingPlan(split, classnames, ids, strata, np.argsort(turn), identity)


def read_or_draw(path: Path, population: Population) -> SamplingPlan:
    """Read the plan of an audit, or draw it. UserError: it is of other images or classes."""
    if not path.exists():
        strata = stratify(population)
        turn = sampling_order(strata, np.random.default_rng(SEED))
        columns = {"image_id": population.image_ids, "stratum": strata, "turn": turn}
        described = {"split": population.split, "classnames": population.classnames, "seed": SEED}
        tables.write(path, columns, PLAN, described)
    plan, split = read_plan(path), population.split
    images = split, population.classnames, population.image_ids
    if (plan.split, plan.classnames, plan.image_ids) != images:
        raise UserError(
            f"{path} was drawn from other images or classes than the {split} split has now; move "
            f"the folder {path.parent} away to begin a new audit."
        )
    return plan


def stratify(population: Population) -> Ints:
    """Return the stratum of each image [N]: whether candidates disagree, and how sure CLIP is."""
    predictions = population.predictions
    agree = (predictions == predictions[:, :1]).all(axis=1)
    disputed = predictions[:, 0] != predictions[:, population.model]
    strata: Ints = np.where(disputed, 3, np.where(agree, 0, 2))
    if agree.any():
        sure = population.confidence >= np.median(population.confidence[agree])
        strata[agree & ~sure] = 1
    for h in range(len(RATES) - 1):  # a variance cannot be estimated from a handful of images
        expected = np.bincount(strata, minlength=len(RATES)) * RATES
        larger = np.flatnonzero(expected[h + 1 :]) + h + 1
        if expected[h] * PREFIX < MIN_IMAGES * expected.sum() and len(larger):
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
        due[rows] = (rng.permutation(len(rows)) + rng.random()) / (len(rows) * RATES[h])
    turn = np.empty(len(strata), dtype=np.int_)
    turn[np.argsort(due, kind="stable")] = np.arange(len(strata))
    return turn
