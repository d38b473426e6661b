"""Labels by what real models said of real images, as they are and made worse on purpose.

    python benchmarks/real_models.py FOLDER [--only TEXT] [--json FILE]

FOLDER holds what real models said of real images. Sets are found by their files:

- `<set>.jsonl` with `<set>_clip_*.npy`: one image a line, with `split`, `label` and `class`. Every
  other key is a labeller: a list has class names, the best first, and a text names a class or
  none. A mapping has the texts of several prompts. Features are [N, D]. Labels are made of the
  images with a list, where some have one. Images of the split `val` are new.
- `<set>_text_*.npz`: text features `W` of the same CLIP for the classes `labels`. The set is also
  measured on these classes alone.
- `<folder>/*.npz`: `images`, `texts` and `labels` of several CLIPs about the same images.
- `<folder>/*.jsonl` without features: `class`, and answers of labellers.

True labels only score. Cells are percentages of right labels: the best of votes and zero-shot,
labels, new images, then the expected calibration error and CPU seconds.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latteclip.labels.label_model import LabelModel

NONE = -1  # no class
SCALE = 100.0  # of CLIP's cosines
ANSWERS = (20, 100)
DRAWINGS = 3  # of answers, and of sets that are made worse by a drawing
NOT_LABELLERS = {"split", "file", "label", "class", "cifar10_test_index"}
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Figures = dict[str, float]


@dataclass(frozen=True)
class Set:
    """Images that get labels, and new ones."""

    name: str
    truth: Ints  # [N]
    n_classes: int
    features: tuple[Floats, ...] = ()  # [N, D] of each encoder
    texts: Floats | None = None  # [C, D]
    votes: Mapping[str, Ints] = field(default_factory=dict)  # [N] or ranks [N, K]
    new_features: Floats | None = None  # [M, D]
    new_truth: Ints | None = None  # [M]

    def take(self, rows: Ints) -> "Set":
        """Return the set of some of the images."""
        votes = {name: one[rows] for name, one in self.votes.items()}
        features = tuple(one[rows] for one in self.features)
        return replace(self, truth=self.truth[rows], features=features, votes=votes)

    def with_votes(self, name: str, votes: Mapping[str, Ints]) -> "Set":
        """Return the set with other votes."""
        return replace(self, name=f"{self.name} {name}".strip(), votes=dict(votes))

    def fit(self, answers: Any = None) -> LabelModel:
        """Return the fitted model."""
        votes = {
            name: ranked(one) if one.ndim == 2 else one for name, one in self.votes.items()
        }
        features = list(self.features) or None
        return LabelModel().fit(
            features, votes, self.texts, answers, n_classes=self.n_classes
        )

    @property
    def best_input(self) -> float:
        """Return the accuracy of the best labeller with a label for every image, silence counted."""
        found = [right(first(one), self.truth) for one in self.votes.values()]
        if self.texts is not None:
            found.append(
                right((self.features[0] @ self.texts.T).argmax(axis=1), self.truth)
            )
        return max(found)


def ranked(options: Ints) -> tuple[Ints, Floats]:
    """Return ranks [N, K] as options with probabilities that fall by 1.5 nats a rank."""
    nats = np.where(options >= 0, -1.5 * np.arange(options.shape[1]), -np.inf)
    shares = np.exp(nats)
    total = np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    return options, (shares / total).astype(np.float32)


def first(votes: Ints) -> Ints:
    """Return the first choices [N]."""
    return votes if votes.ndim == 1 else votes[:, 0]


def right(labels: Ints, truth: Ints) -> float:
    """Return the percentage of right labels."""
    return float(100 * np.mean(labels == truth))


def calibration_error(confidence: Any, is_right: Any, bins: int = 10) -> float:
    """Return the expected calibration error, by bins of equal width."""
    place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    gap = np.bincount(place, is_right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(place))


# --- sets ----------------------------------------------------------------------------------------


def read(folder: Path) -> Iterator[Set]:
    """Return the sets of a folder and of the folders in it."""
    for path in sorted(folder.rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for features in sorted(path.parent.glob(f"{path.stem}_clip_*.npy")):
            table = normalised(np.load(features))
            yield of_rows(path.stem, rows, table)
            for texts in sorted(path.parent.glob(f"{path.stem}_text_*.npz")):
                yield _with_texts(path.stem, rows, table, np.load(texts))
    for inner in sorted({path.parent for path in folder.rglob("*.npz")}):
        yield from _of_clips(inner)


def of_rows(name: str, rows: Sequence[dict[str, Any]], features: Floats) -> Set:
    """Return a set by its rows and their features."""
    names = {plain(row["class"]): int(row["label"]) for row in rows}
    lists = {key for row in rows for key, value in row.items() if isinstance(value, list)}
    pool = [i for i, row in enumerate(rows) if any(row.get(key) for key in lists)]
    pool = pool or [i for i, row in enumerate(rows) if row["split"] != "val"]
    new = [i for i, row in enumerate(rows) if row["split"] == "val"]
    truth = np.array([row["label"] for row in rows])
    votes = labellers([rows[i] for i in pool], names)
    return Set(
        name,
        truth[pool],
        len(names),
        (features[pool],),
        None,
        votes,
        features[new],
        truth[new],
    )


def labellers(rows: Sequence[dict[str, Any]], names: Mapping[str, int]) -> dict[str, Ints]:
    """Return votes by labeller, those of lists first."""
    found: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        for key, value in row.items():
            if key in NOT_LABELLERS or not value:
                continue
            each = value if isinstance(value, dict) else {"": value}
            for prompt, answer in each.items():
                name = f"{key}/{prompt}" if prompt else key
                column = found.setdefault(name, [NONE] * len(rows))
                column[number] = _classes(answer, names)
    votes = {}
    for name, column in found.items():
        if any(isinstance(one, list) for one in column):
            table = np.full((len(rows), 5), NONE)
            for number, classes in enumerate(column):
                if isinstance(classes, list):
                    table[number, : len(classes)] = classes
            votes[name] = table
        elif max(column) >= 0:
            votes[name] = np.array(column)
    return dict(sorted(votes.items(), key=lambda one: (one[1].ndim == 1, "/" in one[0])))


def _classes(answer: Any, names: Mapping[str, int]) -> Any:
    """Return the classes of a list of names, or the only class that a text names."""
    if isinstance(answer, list):
        known = [names[plain(str(one))] for one in answer if plain(str(one)) in names]
        return list(dict.fromkeys(known))[:5]
    text = f" {plain(str(answer))} "
    found = [name for name in names if f" {name} " in text]
    longest = [
        one
        for one in found
        if not any(one != two and f" {one} " in f" {two} " for two in found)
    ]
    classes = {names[name] for name in longest}
    return classes.pop() if len(classes) == 1 else NONE


def _with_texts(
    name: str, rows: Sequence[dict[str, Any]], features: Floats, content: Any
) -> Set:
    number = {int(label): place for place, label in enumerate(content["labels"])}
    known = [i for i, row in enumerate(rows) if row["label"] in number]
    some = [{**rows[i], "label": number[rows[i]["label"]]} for i in known]
    found = of_rows(f"{name}_{len(number)}", some, features[known])
    return replace(found, texts=normalised(content["W"]), n_classes=len(number))


def _of_clips(folder: Path) -> Iterator[Set]:
    contents = {path.stem: np.load(path) for path in sorted(folder.glob("*.npz"))}
    clips = {
        name: (
            normalised(one["images"]),
            normalised(one["texts"]),
            one["labels"].astype(int),
        )
        for name, one in contents.items()
        if {"images", "texts", "labels"} <= set(one)
    }
    for name, (images, texts, truth) in clips.items():
        votes = {
            other: (one @ two.T).argmax(axis=1)
            for other, (one, two, _) in clips.items()
            if other != name
        }
        yield Set(f"{folder.name}_{name}", truth, len(texts), (images,), texts, votes)


def plain(name: str) -> str:
    """Return a class name as names are compared: letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def normalised(table: Any) -> Floats:
    """Return rows of length 1."""
    rows = np.asarray(table, dtype=np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# --- sets made worse -----------------------------------------------------------------------------

Worse = Callable[[Set, np.random.Generator], Set]


def imbalanced(ratio: float) -> Worse:
    """Return a drawing in which frequencies of classes fall to 1 / ratio, in random order."""

    def draw(data: Set, rng: np.random.Generator) -> Set:
        order = rng.permutation(data.n_classes)
        shares = ratio ** (-order / max(1, data.n_classes - 1))
        counts = np.bincount(data.truth, minlength=data.n_classes)
        scale = np.median(counts[counts > 0])
        return _of_counts(data, np.maximum(1, np.round(scale * shares)).astype(int), rng)

    return draw


def of_each(count: int) -> Worse:
    """Return a drawing of so many images of each class."""
    return lambda data, rng: _of_counts(data, np.full(data.n_classes, count), rng)


def one_class(share: float) -> Worse:
    """Return a drawing in which the largest class has a share of the images."""

    def draw(data: Set, rng: np.random.Generator) -> Set:
        counts = np.bincount(data.truth, minlength=data.n_classes)
        largest = counts.argmax()
        rest = counts[largest] * (1 - share) / share / max(1, data.n_classes - 1)
        wanted = np.full(data.n_classes, max(1, round(rest)) if share < 1 else 0)
        wanted[largest] = counts[largest]
        return _of_counts(data, wanted, rng)

    return draw


def _of_counts(data: Set, wanted: Ints, rng: np.random.Generator) -> Set:
    order = rng.permutation(len(data.truth))
    truth = data.truth[order]
    place = np.zeros(len(order), dtype=int)
    for label in range(data.n_classes):
        rows = np.flatnonzero(truth == label)
        place[rows] = np.arange(len(rows))
    return data.take(np.sort(order[place < wanted[truth]]))


def few(data: Set, rng: np.random.Generator) -> Set:
    """Return half as many images as there are classes."""
    return data.take(np.sort(rng.permutation(len(data.truth))[: data.n_classes // 2]))


def narrow(width: int) -> Worse:
    """Return features that are projected at random to some numbers."""

    def project(data: Set, rng: np.random.Generator) -> Set:
        matrix = rng.normal(size=(data.features[0].shape[1], width)).astype(np.float32)
        new = data.new_features
        return replace(
            data,
            features=tuple(normalised(one @ matrix) for one in data.features),
            texts=None if data.texts is None else normalised(data.texts @ matrix),
            new_features=None if new is None else normalised(new @ matrix),
        )

    return project


def shuffled(data: Set, rng: np.random.Generator) -> Set:
    """Return votes of other images."""
    order = rng.permutation(len(data.truth))
    return replace(data, votes={name: one[order] for name, one in data.votes.items()})


def beside(name: str, make: Callable[[Set, np.random.Generator], Ints]) -> Worse:
    """Return the set with one more labeller."""
    return lambda data, rng: replace(data, votes={**data.votes, name: make(data, rng)})


def _zero_shot(data: Set, _: np.random.Generator) -> Ints:
    assert data.texts is not None
    return np.asarray((data.features[0] @ data.texts.T).argmax(axis=1))


def _random(data: Set, rng: np.random.Generator) -> Ints:
    return rng.integers(data.n_classes, size=len(data.truth))


def copies(data: Set, rng: np.random.Generator) -> Set:
    """Return three copies of each labeller."""
    votes = {f"{name} {k}": one for name, one in data.votes.items() for k in range(3)}
    return replace(data, votes=votes)


def of_nobody(data: Set, rng: np.random.Generator) -> Set:
    """Return random votes."""
    return replace(data, votes={"nobody": _random(data, rng)})


DRAWN: dict[str, Worse] = {
    "imbalance 20": imbalanced(20),
    "imbalance 100": imbalanced(100),
    "70 % of one class": one_class(0.7),
    "two a class": of_each(2),
    "three a class": of_each(3),
    "five a class": of_each(5),
    "fewer images than classes": few,
    "images of one class": one_class(1),
    "8 numbers": narrow(8),
    "16 numbers": narrow(16),
}
OF_VOTES: dict[str, Worse] = {
    "shuffled": shuffled,
    "labels of nobody": of_nobody,
    "a junk labeller": beside("junk", _random),
    "a constant labeller": beside(
        "constant", lambda data, _: np.zeros(len(data.truth), int)
    ),
    "three copies": copies,
}
