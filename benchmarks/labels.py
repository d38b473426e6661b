"""What labels without a human are worth, and what spoils them.

    python benchmarks/labels.py results/demo [--seeds 5]

reads what a run of `image_prototypes` left of a dataset whose labels are known, spoils votes or
draws some of the training images, and labels them again. True labels only score. Shares of right
labels of training images, then of right predictions on the test split, in percent, then the mean
confidence of the labels minus the share of right ones, in points. Means and standard deviations
over the seeds. What is not spoiled is in another order for each of them, which the folds of the
label model follow.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.clip.features import read_features
from latteclip.core import tables
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.labels.label_inputs import LabelInputs
from latteclip.labels.label_model import LabelModel
from latteclip.labels.votes import Votes

Ints = npt.NDArray[np.int_]
# Right labels and right predictions, percent, and confidence minus right labels.
Scored = tuple[float, float | None, float | None]
Change = Callable[["Data", np.random.Generator], "Data"]


class Data:
    """Training images with their votes, and test images."""

    def __init__(self, folder: Path) -> None:
        index = tables.read(folder / "images.parquet")
        is_test = pc.equal(index["split"], "test")
        train, test = (
            index.filter(rows) for rows in (pc.invert(is_test), is_test)
        )
        report = read_fusion_report(folder / NAME)
        without_encoders = replace(report, image_encoders=[], examples=0)
        self.inputs = LabelInputs.of_report(without_encoders, folder, train)
        self.labels: Ints = train["label"].to_numpy()
        self.test = read_features(
            str(folder / "pseudo_labels.parquet"), test["image_id"]
        )[:].numpy()
        self.test_labels: Ints = test["label"].to_numpy()

    def of_rows(self, rows: Ints, *, votes_of: Ints | None = None) -> "Data":
        """Return some images, with the votes about these or about others."""
        data: Data = Data.__new__(Data)
        vars(data).update(vars(self))
        others = rows if votes_of is None else votes_of
        votes = {
            name: Votes(one.options[others], one.shares[others])
            for name, one in self.inputs.votes.items()
        }
        features = [self.inputs.features[0][rows]]
        data.inputs = replace(
            self.inputs,
            images=self.inputs.images.take(pa.array(rows)),
            groups=self.inputs.groups[rows],
            features=features,
            votes=votes,
        )
        data.labels = self.labels[rows]
        return data

    def scored(self, labels: Any, model: LabelModel | None = None) -> Scored:
        """Return what labels are worth, and the model that gave them, if there is one."""
        right = 100 * float((labels == self.labels).mean())
        if model is None:
            return right, None, None
        tested = 100 * float((model.predict(self.test) == self.test_labels).mean())
        return right, tested, 100 * float(model.confidence_.mean()) - right


def shuffled(data: Data, rng: np.random.Generator) -> Data:
    """Return the images in another order."""
    return data.of_rows(rng.permutation(len(data.labels)))


def swapped(share: float) -> Change:
    """Return a change that shuffles a share of the votes."""

    def change(data: Data, rng: np.random.Generator) -> Data:
        order = np.arange(len(data.labels))
        moved = np.flatnonzero(rng.random(len(order)) < share)
        order[moved] = rng.permutation(moved)
        return data.of_rows(np.arange(len(order)), votes_of=order)

    return change


def drawn(sizes: Callable[[int, float], int]) -> Change:
    """Return a change that draws images of each class, by its number and its place from 0 to 1."""

    def change(data: Data, rng: np.random.Generator) -> Data:
        some = []
        n_classes = len(data.inputs.classnames)
        for place, label in enumerate(rng.permutation(n_classes)):
            rows = rng.permutation(np.flatnonzero(data.labels == label))
            some.append(
                rows[: max(1, sizes(len(rows), place / max(1, n_classes - 1)))]
            )
        return data.of_rows(np.sort(np.concatenate(some)))

    return change


CHANGES: dict[str, Change] = {
    "as it is": shuffled,
    "25 % of the votes swapped": swapped(0.25),
    "50 %": swapped(0.5),
    "75 %": swapped(0.75),
    "all": swapped(1.0),
    "imbalance 20": drawn(lambda n, place: round(n * 20**-place)),
    "imbalance 50": drawn(lambda n, place: round(n * 50**-place)),
    "5 images a class": drawn(lambda n, place: 5),
    "2 images a class": drawn(lambda n, place: 2),
}


def rows_of(data: Data) -> dict[str, Scored]:
    """Return what each source of labels is worth."""
    inputs = data.inputs
    zero_shot = (inputs.features[0] @ inputs.texts.T).argmax(axis=1)
    adapted = replace(inputs, votes={}).fit()
    found = {
        "zero-shot": data.scored(zero_shot),
        "adapted": data.scored(adapted.labels_, adapted),
    }
    for name, votes in inputs.votes.items():
        found[name] = data.scored(votes.first)
    fused = inputs.fit()
    return found | {"fused": data.scored(fused.labels_, fused)}


def cell(found: list[Scored]) -> str:
    """Return labels / test / excess of confidence, each a mean with its deviation."""
    parts = []
    for column in zip(*found, strict=True):
        known = [value for value in column if value is not None]
        text = f"{statistics.mean(known):.1f}" if known else "-"
        if len(known) > 1:
            text += f" +- {statistics.stdev(known):.1f}"
        parts.append(text)
    return " / ".join(parts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a dataset")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    data = Data(args.results)
    for name, change in CHANGES.items():
        drawings = [
            rows_of(change(data, np.random.default_rng(seed)))
            for seed in range(args.seeds)
        ]
        if change is shuffled:
            print(f"| {args.results} | {' | '.join(drawings[0])} |")
            print("|---" * (1 + len(drawings[0])) + "|")
        cells = [cell([found[part] for found in drawings]) for part in drawings[0]]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
