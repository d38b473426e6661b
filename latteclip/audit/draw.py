"""In which order the images of an audit are shown: every beginning of it is a stratified sample.

Letters: N images, K candidates, H strata, n answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from latteclip.audit.candidates import Audited, Ints
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest

SEED = 0
# The strata, and how often an image of each is drawn in comparison with the last. Where candidates
# agree, an answer says nothing of their difference, and less of their accuracies the surer they
# are: after Neyman (1934), rates are as standard deviations.
STRATA = {
    "all agree, sure": 0.3,
    "all agree, not sure": 0.45,
    "others disagree": 0.7,
    "baseline and model disagree": 1.0,
}
RATES = np.array(list(STRATA.values()))  # [H]
FEWEST = 5  # of the first SMALL images; a stratum that would get fewer is joined with the next
SMALL = 50
PLAN = pa.schema(
    [
        ("image_id", pa.string()),
        ("stratum", pa.int8()),
        ("turn", pa.int32()),  # when the image is shown: 0 is the first
    ]
)


@dataclass(frozen=True)
class Plan:
    """The order in which the N images of an audit are shown."""

    split: str
    classnames: list[str]
    image_ids: list[str]  # N
    strata: Ints  # [N]
    order: Ints  # [N]: the images by turn, as indices
    digest: str  # of all that answers rest on

    def drawn(self, budget: int) -> Ints:
        """The images that are shown first."""
        return self.order[:budget]


def planned(path: Path) -> list[str] | None:
    """The images of a plan; None: there is none."""
    return read(path).image_ids if path.exists() else None


def read(path: str | Path) -> Plan:
    """Read a plan that was drawn.

    Raises:
        UserError: the file is missing or broken.
    """
    table, described = tables.read(path, PLAN)
    split, classnames = described["split"], described["classnames"]
    ids: list[str] = table["image_id"].to_pylist()
    strata, turn = (table[name].to_numpy().astype(np.int_) for name in ("stratum", "turn"))
    order = np.stack([strata, turn]).astype("<i8").tobytes()
    own_digest = digest(split, order, *classnames, *ids)[:16]
    return Plan(split, classnames, ids, strata, np.argsort(turn), own_digest)


def read_or_draw(path: Path, audited: Audited) -> Plan:
    """The plan of an audit: drawn once, and kept whatever candidates come later.

    Raises:
        UserError: the plan is of other images or classes.
    """
    if not path.exists():
        strata = stratify(audited)
        _write(path, audited, strata, turns(strata, np.random.default_rng(SEED)))
    plan = read(path)
    if (plan.split, plan.classnames, plan.image_ids) != (
        *(audited.split, audited.classnames),
        audited.image_ids,
    ):
        raise UserError(
            f"{path} was drawn from other images or classes than the {audited.split} split has "
            f"now; move the folder {path.parent} away to begin a new audit."
        )
    return plan


def stratify(audited: Audited) -> Ints:
    """The stratum of each image [N]: whether candidates disagree, and how sure CLIP is."""
    said, (first, second) = audited.predictions, audited.pair
    agree = (said == said[:, :1]).all(axis=1)
    strata: Ints = np.where(said[:, first] != said[:, second], 3, np.where(agree, 0, 2))
    if agree.any():
        strata[agree & (audited.confidence < np.median(audited.confidence[agree]))] = 1
    return _joined(strata)


def _joined(strata: Ints) -> Ints:
    """Without strata that would get too few of the first images to tell how their images vary."""
    strata = strata.copy()
    for h in range(len(RATES) - 1):
        expected = np.bincount(strata, minlength=len(RATES)) * RATES
        larger = np.flatnonzero(expected[h + 1 :]) + h + 1
        if expected[h] * SMALL < FEWEST * expected.sum() and len(larger):
            strata[strata == h] = larger[0]
    return strata


def turns(strata: Ints, rng: np.random.Generator) -> Ints:
    """When each image is shown [N].

    The images of a stratum stand in random order, and strata take turns at their rates. So the
    first n images are a simple random sample of each stratum, whatever n is.
    """
    due = np.empty(len(strata))
    for h in np.unique(strata):
        rows = np.flatnonzero(strata == h)
        due[rows] = (rng.permutation(len(rows)) + rng.random()) / (len(rows) * RATES[h])
    turn = np.empty(len(strata), dtype=np.int_)
    turn[np.argsort(due, kind="stable")] = np.arange(len(strata))
    return turn


def _write(path: Path, audited: Audited, strata: Ints, turn: Ints) -> None:
    columns = {
        "image_id": audited.image_ids,
        "stratum": strata.astype(np.int8),
        "turn": turn.astype(np.int32),
    }
    metadata = {
        "dataset": audited.dataset,
        "split": audited.split,
        "classnames": audited.classnames,
        "strata": _described(strata),
        "candidates": [[one.method, one.seed] for one in audited.candidates],
        "seed": SEED,
    }
    tables.write(path, columns, PLAN, metadata)


def _described(strata: Ints) -> list[dict[str, object]]:
    """The strata with their images and rates, for people."""
    counts: Sequence[int] = np.bincount(strata, minlength=len(STRATA)).tolist()
    return [
        {"stratum": name, "images": count, "rate": rate}
        for (name, rate), count in zip(STRATA.items(), counts, strict=True)
    ]
