"""The images of an audit: those that may be drawn, what models predict of them, and their order.

Every prefix of the order is a stratified sample.

Letters: N images, K candidates, C classes, H strata.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest
from latteclip.evaluate.results import Run, read_selection
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS, read_predictions
from latteclip.labels.answers import AnswerSchema

log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
FOLDER = "audit"  # in a dataset's results
BASELINE = "zero_shot"
FIRST_METHODS = (BASELINE, "zero_shot_calibrated")  # of the candidates
# The table in a run's folder that predicts the evaluated images, and its schema.
EVALUATED = ("predictions.parquet", tables.PREDICTIONS)
# The same of training images that the run did not learn from.
LEFT_OUT = ("train_predictions.parquet", TRAIN_PREDICTIONS)
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
PLAN = pa.schema(
    [
        ("image_id", pa.string()),
        ("stratum", pa.int8()),
        ("turn", pa.int32()),  # position in the order, from 0
    ]
)


class Candidate(NamedTuple):
    """The run that represents its method."""

    method: str
    seed: int


@dataclass(frozen=True)
class Population:
    """The images of a dataset that may be drawn, and the candidates' predictions."""

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


def plan_path(folder: Path, split: str) -> Path:
    """Return the place of a split's plan in a dataset's results."""
    return folder / FOLDER / split / "plan.parquet"


def answers_path(folder: Path, split: str) -> Path:
    """Return the place of the answers to a split's plan."""
    return folder / FOLDER / split / "answers.json"


# --- population ----------------------------------------------------------------------------------


def read_population(folder: str | Path, split: str | None = None) -> Population:
    """Read the images of a split with the predictions of every method that was run.

    The chosen run represents its method, or else its first seed does. Beside a test split, only
    training images are taken that no candidate learned from. Without a test split all images are
    taken, for their labels are wanted. Where images are planned already, methods that do not
    predict all of them are left out.

    Args:
        folder: of a dataset's results.
        split: test or train; None: test where it has images.

    Raises:
        UserError: there is nothing to audit, or a file is missing or of other images.
    """
    folder = Path(folder)
    index, classnames = tables.read_unlabelled(folder / "images.parquet", training=False)
    is_test = pc.equal(index["split"], "test")
    has_tests = pc.any(is_test).as_py()
    split = split or ("test" if has_tests else "train")
    table = LEFT_OUT if has_tests and split == "train" else EVALUATED
    index = index.filter(is_test if split == "test" else pc.invert(is_test))
    plan = plan_path(folder, split)
    images = read_plan(plan).image_ids if plan.exists() else []
    if images:  # images that came later are no part of the audit
        index = index.filter(pc.is_in(index["image_id"], pa.array(images)))
    chosen = chosen_run(folder)
    candidates = _candidates(folder, table[0], chosen)
    predicted = [_predictions(folder, table, one, classnames) for one in candidates]
    if images:
        candidates, predicted = _covering(images, candidates, predicted)
    common = np.ones(len(index), dtype=bool)
    for part in predicted:
        common &= pc.is_in(index["image_id"], part["image_id"]).to_numpy()
    if not common.any():
        unlearned = " and that no model learned from" if table is LEFT_OUT else ""
        raise UserError(f"{folder} has no {split} images that all its models predict{unlearned}.")
    index = index.filter(pa.array(common))
    ids = index["image_id"].to_pylist()
    columns = [
        part["prediction"].take(pc.index_in(index["image_id"], part["image_id"])).to_numpy()
        for part in predicted
    ]
    predictions = np.stack(columns, axis=1).astype(np.int_)
    ranked, confidence = (
        tables.lookup(
            folder / "pseudo_labels.parquet", tables.PSEUDO_LABELS, "image_id", column, ids
        )
        for column in ("topk_labels", "confidence")
    )
    return Population(
        folder.absolute().name,
        split,
        classnames,
        ids,
        index["path"].to_pylist(),
        candidates,
        predictions,
        np.array(ranked, dtype=np.int_),
        np.array(confidence, dtype=np.float64),
        _pair(candidates, predictions, chosen),
    )


def left_out_table(folder: Path) -> Path:
    """Return the table of what a run predicts of training images that it did not learn from."""
    of_average = folder / "left_out.parquet"
    return of_average if of_average.is_file() else folder / LEFT_OUT[0]


def runs_with(folder: Path, name: str = EVALUATED[0]) -> list[Run]:
    """Return the runs whose folder has a table of this name: baselines first, then by name."""
    found = []
    for path in folder.glob(f"*/seed*/{name}"):
        number = path.parent.name.removeprefix("seed")
        if number.isdecimal():
            found.append((path.parent.parent.name, int(number)))
    rank = {method: number for number, method in enumerate(FIRST_METHODS)}
    return sorted(found, key=lambda run: (rank.get(run[0], len(rank)), run))


def chosen_run(folder: Path) -> Run | None:
    """Return the run that the workflow chose, if it chose."""
    path = folder / "selection.json"
    return read_selection(path).run if path.is_file() else None


def _candidates(folder: Path, name: str, chosen: Run | None) -> list[Candidate]:
    """Return one run of each method that has a table of this name.

    Each seed leaves out other training images, so the seed of the chosen model is preferred.
    """
    found: dict[str, Candidate] = {}
    for method, seed in runs_with(folder, name):
        if method not in found or (chosen and seed == chosen[1]):
            found[method] = Candidate(method, seed)
    if not found:
        raise UserError(
            f"{folder} has no predictions of the images yet; run the workflow first: "
            f"snakemake -j4 --config dataset={folder.absolute().name}."
        )
    return list(found.values())


def _predictions(
    folder: Path, of: tuple[str, pa.Schema], one: Candidate, classnames: Sequence[str]
) -> pa.Table:
    name, schema = of
    path = folder / one.method / f"seed{one.seed}" / name
    if of is LEFT_OUT:
        return read_predictions(str(left_out_table(path.parent)), classnames, held_out=True)
    table, described = tables.read(path, schema, ["image_id", "prediction"])
    if described.get("classnames") != list(classnames):
        raise UserError(f"{path} is of other classes than the image index; rerun its stage.")
    return table


def _covering(
    images: list[str], candidates: list[Candidate], predicted: list[pa.Table]
) -> tuple[list[Candidate], list[pa.Table]]:
    """Return the candidates that predict all these images; all candidates if none does."""
    covers = [pc.all(pc.is_in(pa.array(images), part["image_id"])).as_py() for part in predicted]
    if not any(covers):
        return candidates, predicted
    covering = list(compress(candidates, covers))
    if missing := [one.method for one in candidates if one not in covering]:
        log.warning(
            "%s: left out, for there are no predictions of some images of this audit.",
            ", ".join(missing),
        )
    return covering, list(compress(predicted, covers))


def _pair(
    candidates: Sequence[Candidate], predictions: Ints, chosen: Run | None
) -> tuple[int, int]:
    """Return the baseline and the chosen model, or the model that differs most from it."""
    if chosen and chosen in candidates[1:]:
        return 0, candidates.index(Candidate(*chosen))
    return 0, int((predictions != predictions[:, :1]).sum(axis=0).argmax())


# --- plan ----------------------------------------------------------------------------------------


def read_plan(path: str | Path) -> SamplingPlan:
    """Read a plan.

    Raises:
        UserError: the file is missing or broken.
    """
    table, described = tables.read(path, PLAN)
    split, classnames = described["split"], described["classnames"]
    ids: list[str] = table["image_id"].to_pylist()
    strata, turn = (table[name].to_numpy().astype(np.int_) for name in ("stratum", "turn"))
    order = np.stack([strata, turn]).astype("<i8").tobytes()
    identity = digest(split, order, *classnames, *ids)[:16]
    return SamplingPlan(split, classnames, ids, strata, np.argsort(turn), identity)


def read_or_draw(path: Path, population: Population) -> SamplingPlan:
    """Read the plan of an audit, or draw it; later candidates do not change it.

    Raises:
        UserError: the plan is of other images or classes.
    """
    if not path.exists():
        strata = stratify(population)
        _write_plan(path, population, strata, sampling_order(strata, np.random.default_rng(SEED)))
    plan = read_plan(path)
    if (plan.split, plan.classnames, plan.image_ids) != (
        *(population.split, population.classnames),
        population.image_ids,
    ):
        raise UserError(
            f"{path} was drawn from other images or classes than the {population.split} split has "
            f"now; move the folder {path.parent} away to begin a new audit."
        )
    return plan


def stratify(population: Population) -> Ints:
    """Return the stratum of each image [N]: whether candidates disagree, and how sure CLIP is."""
    predictions, (first, second) = population.predictions, population.pair
    agree = (predictions == predictions[:, :1]).all(axis=1)
    disputed = predictions[:, first] != predictions[:, second]
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


def _write_plan(path: Path, population: Population, strata: Ints, turn: Ints) -> None:
    columns = {
        "image_id": population.image_ids,
        "stratum": strata.astype(np.int8),
        "turn": turn.astype(np.int32),
    }
    counts = np.bincount(strata, minlength=len(STRATA)).tolist()
    metadata = {
        "dataset": population.dataset,
        "split": population.split,
        "classnames": population.classnames,
        "strata": [
            {"stratum": name, "images": count, "rate": rate}
            for (name, rate), count in zip(STRATA.items(), counts, strict=True)
        ],
        "candidates": [[one.method, one.seed] for one in population.candidates],
        "seed": SEED,
    }
    tables.write(path, columns, PLAN, metadata)
