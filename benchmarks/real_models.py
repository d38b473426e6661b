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

True labels only score, and simulate a person's answers. Each set is measured as it is and made
worse in each way, by the mean of DRAWINGS drawings. Columns: the best of votes and zero-shot,
labels, and images that the model has not seen, in percent that is right; the expected calibration
error of the labels' confidence; the accuracy of the first labeller, and what the model states; CPU
seconds. `--answers` adds labels of unasked images before and after 20 and 100 random answers.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latteclip.labels.label_model import LabelModel
from latteclip.labels.votes import softmax

NONE = -1  # no class
SCALE = 100.0  # of CLIP's cosines
ANSWERS = (20, 100)
DRAWINGS = 3  # of answers, and of sets that are made worse by a drawing
# Columns that hold no answer, or the same answer in other words.
NOT_LABELLERS = {
    *("split", "file", "label", "class", "cifar10_test_index", "answers_cleaned"),
    *("gpt4o_raw", "clip_vitl14_top1_prob"),
}
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
    # [N], ranks [N, K] or probabilities [N, C]
    votes: Mapping[str, Any] = field(default_factory=dict)
    new_features: Floats | None = None  # [M, D]
    new_truth: Ints | None = None  # [M]

    def take(self, rows: Ints) -> "Set":
        """Return the set of some of the images."""
        votes = {name: one[rows] for name, one in self.votes.items()}
        features = tuple(one[rows] for one in self.features)
        return replace(
            self, truth=self.truth[rows], features=features, votes=votes
        )

    def with_votes(self, name: str, votes: Mapping[str, Ints]) -> "Set":
        """Return the set with other votes."""
        return replace(self, name=f"{self.name} {name}".strip(), votes=dict(votes))

    def fit(self, answers: Any = None) -> LabelModel:
        """Return the fitted model."""
        votes = {
            name: ranked(one) if is_ranked(one) else one
            for name, one in self.votes.items()
        }
        features = list(self.features) or None
        return LabelModel().fit(
            features, votes, self.texts, answers, n_classes=self.n_classes
        )

    @property
    def best_input(self) -> float:
        """Return the accuracy of the best labeller, for which silence is wrong."""
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


def is_ranked(votes: Any) -> bool:
    """Return whether votes are ranks [N, K], and not classes [N] or probabilities [N, C]."""
    return bool(votes.ndim == 2 and votes.dtype.kind == "i")


def first(votes: Any) -> Ints:
    """Return the first choices [N]."""
    if votes.ndim == 1:
        return np.asarray(votes)
    return np.asarray(votes[:, 0] if is_ranked(votes) else votes.argmax(axis=1))


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
        if "class" in rows[0] and "label" not in rows[0]:
            found = _of_answers(path, rows)
            if found.votes:
                yield found
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
    lists = {
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, list)
    }
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


def labellers(
    rows: Sequence[dict[str, Any]], names: Mapping[str, int]
) -> dict[str, Ints]:
    """Return votes by labeller, those of lists first."""
    found: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        for key, value in row.items():
            if key in NOT_LABELLERS or not value:
                continue
            if isinstance(value, dict) and "answer" in value:
                value = value["answer"]
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
    return dict(
        sorted(votes.items(), key=lambda one: (one[1].ndim == 1, "/" in one[0]))
    )


def _of_answers(path: Path, rows: Sequence[dict[str, Any]]) -> Set:
    """Return a set without features, or with those of a file that knows images by their number."""
    names = {
        plain(name): k
        for k, name in enumerate(sorted({row["class"] for row in rows}))
    }
    features: tuple[Floats, ...] = ()
    for table in path.parent.glob("*.npz"):
        content = np.load(table)
        place = {
            int(number): k
            for k, number in enumerate(content["cifar10_test_index"])
        }
        rows = [row for row in rows if row.get("cifar10_test_index") in place]
        known = [place[row["cifar10_test_index"]] for row in rows]
        features = (normalised(content["features"][known]),)
    truth = np.array([names[plain(row["class"])] for row in rows])
    return Set(
        path.stem, truth, len(names), features, None, labellers(rows, names)
    )


def _classes(answer: Any, names: Mapping[str, int]) -> Any:
    """Return the classes of a list of names, or the only class that a text names."""
    if isinstance(answer, str) and plain(answer) in names:
        return names[plain(answer)]
    if isinstance(answer, list):
        known = [
            names[plain(str(one))] for one in answer if plain(str(one)) in names
        ]
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
            other: softmax(SCALE * one @ two.T)
            for other, (one, two, _) in clips.items()
            if other != name
        }
        yield Set(
            f"{folder.name}_{name}", truth, len(texts), (images,), texts, votes
        )


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
        return _of_counts(
            data, np.maximum(1, np.round(scale * shares)).astype(int), rng
        )

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
    return data.take(
        np.sort(rng.permutation(len(data.truth))[: data.n_classes // 2])
    )


def narrow(width: int) -> Worse:
    """Return features that are projected at random to some numbers."""

    def project(data: Set, rng: np.random.Generator) -> Set:
        matrix = rng.normal(size=(data.features[0].shape[1], width)).astype(
            np.float32
        )
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
    return replace(
        data, votes={name: one[order] for name, one in data.votes.items()}
    )


def beside(name: str, make: Callable[[Set, np.random.Generator], Ints]) -> Worse:
    """Return the set with one more labeller."""
    return lambda data, rng: replace(
        data, votes={**data.votes, name: make(data, rng)}
    )


def _zero_shot(data: Set, _: np.random.Generator) -> Ints:
    assert data.texts is not None
    return np.asarray((data.features[0] @ data.texts.T).argmax(axis=1))


def _random(data: Set, rng: np.random.Generator) -> Ints:
    return rng.integers(data.n_classes, size=len(data.truth))


def copies(data: Set, rng: np.random.Generator) -> Set:
    """Return three copies of each labeller."""
    votes = {
        f"{name} {k}": one for name, one in data.votes.items() for k in range(3)
    }
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
}
OF_VOTES: dict[str, Worse] = {
    "8 numbers": narrow(8),
    "16 numbers": narrow(16),
    "shuffled": shuffled,
    "labels of nobody": of_nobody,
    "a junk labeller": beside("junk", _random),
    "a constant labeller": beside(
        "constant", lambda data, _: np.zeros(len(data.truth), int)
    ),
    "three copies": copies,
}


# --- what is measured ----------------------------------------------------------------------------


def variants(data: Set, drawing: int) -> Iterator[tuple[str, Set]]:
    """Return a set as it is and made worse, by a drawing: texts alone, votes, several labellers."""
    rng = np.random.default_rng(drawing)
    names = list(data.votes)
    if data.texts is not None:
        alone = replace(data, votes={})
        yield "texts", alone
        half = np.flatnonzero(rng.random(len(data.truth)) < 0.5)
        new = np.setdiff1d(np.arange(len(data.truth)), half)
        unseen, classes = data.features[0][new], data.truth[new]
        seen = alone.take(half)
        yield "texts, half", replace(seen, new_features=unseen, new_truth=classes)
        yield from (
            (f"texts, {name}", worse(alone, rng)) for name, worse in DRAWN.items()
        )
        copy = {"a copy of zero-shot": _zero_shot(data, rng)}
        yield "a copy of zero-shot alone", replace(data, texts=None, votes=copy)
    if not names:
        return
    firsts = {name: first(votes) for name, votes in data.votes.items()}
    if data.features:
        one = replace(data, votes={names[0]: firsts[names[0]]})
        yield "first answers", one
        for name, worse in {**DRAWN, **OF_VOTES}.items():
            yield f"first answers, {name}", worse(one, rng)
        if data.texts is not None:
            both = {**one.votes, "a copy of zero-shot": _zero_shot(data, rng)}
            yield "first answers and a copy of zero-shot", replace(one, votes=both)
        if data.votes[names[0]].ndim == 2:
            whole = replace(data, votes={names[0]: data.votes[names[0]]})
            kind = (
                "ranked answers"
                if is_ranked(data.votes[names[0]])
                else "probabilities"
            )
            yield kind, whole
            for name, worse in DRAWN.items():
                yield f"{kind}, {name}", worse(whole, rng)
    for count in dict.fromkeys((2, 3, len(names))):
        if 1 < count <= len(names):
            some = {name: firsts[name] for name in names[:count]}
            if data.features:
                yield f"{count} labellers", replace(data, votes=some)
            bare = replace(
                data, votes=some, features=(), texts=None, new_features=None
            )
            yield f"{count} labellers without images", bare


def measure(data: Set) -> Figures:
    """Return the figures of the labels of a set."""
    start = time.process_time()
    model = data.fit()
    seconds = time.process_time() - start
    is_right = model.labels_ == data.truth
    found = {
        "images": len(data.truth),
        "input": data.best_input,
        "labels": right(model.labels_, data.truth),
        "ece": calibration_error(model.confidence_, is_right),
        "checked": float(model.is_checked_),
        "seconds": seconds,
    }
    if not data.features:
        found["majority"] = right(majority(data), data.truth)
    if data.features and data.new_features is not None:
        found["new"] = right(
            model.predict(data.new_features), np.asarray(data.new_truth)
        )
    for name, votes in list(data.votes.items())[:1]:
        has = first(votes) >= 0
        found["true"] = right(first(votes)[has], data.truth[has])
        accuracy = model.labellers_[name].accuracy
        if accuracy is not None:
            found["stated"] = 100 * accuracy.value
    return found


def majority(data: Set) -> Ints:
    """Return the classes [N] that most labellers name, ties at random."""
    counts = (
        np.random.default_rng(0).random((len(data.truth), data.n_classes)) * 1e-3
    )
    for votes in data.votes.values():
        has = np.flatnonzero(first(votes) >= 0)
        counts[has, first(votes)[has]] += 1
    return np.asarray(counts.argmax(axis=1))


def after_answers(data: Set, drawing: int) -> Figures:
    """Return labels of the unasked before and after random answers, and new images after them."""
    before = data.fit().labels_
    order = np.random.default_rng(drawing).permutation(len(data.truth))
    found = {}
    for count in ANSWERS:
        if 2 * count > len(order):
            continue
        asked, others = order[:count], order[count:]
        model = data.fit({int(row): int(data.truth[row]) for row in asked})
        truth = data.truth[others]
        found[f"before {count}"] = right(before[others], truth)
        found[f"after {count}"] = right(model.labels_[others], truth)
        is_right = model.labels_[others] == truth
        found[f"ece {count}"] = calibration_error(
            model.confidence_[others], is_right
        )
        if data.features and data.new_features is not None:
            found[f"new {count}"] = right(
                model.predict(data.new_features), np.asarray(data.new_truth)
            )
    return found


# --- tables --------------------------------------------------------------------------------------

COLUMNS = (
    "images",
    "input",
    "majority",
    "labels",
    "new",
    "ece",
    "checked",
    "true",
    "stated",
    "seconds",
)
OF_ANSWERS = tuple(
    f"{what} {count}"
    for count in ANSWERS
    for what in ("before", "after", "new", "ece")
)


def mean(drawings: Sequence[Figures]) -> Figures:
    """Return the means of figures that all drawings have."""
    keys = [key for key in drawings[0] if all(key in one for one in drawings)]
    return {key: float(np.mean([one[key] for one in drawings])) for key in keys}


def cells(found: Figures, columns: Sequence[str]) -> str:
    """Return figures as cells of a table."""
    small = ("ece", "seconds")
    texts = [
        ""
        if key not in found
        else f"{found[key]:.{2 if key.startswith(small) else 1}f}"
        for key in columns
    ]
    return " | ".join(texts)


def main() -> None:
    """Measure each set of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="text that names of rows hold")
    parser.add_argument(
        "--answers", action="store_true", help="also answers of a person"
    )
    parser.add_argument("--drawings", type=int, default=DRAWINGS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    columns = [*COLUMNS, *(OF_ANSWERS if args.answers else ())]
    print(f"| set | {' | '.join(columns)} |\n{'|---' * (1 + len(columns))}|")
    results: dict[str, Figures] = {}
    for data in read(args.folder):
        drawings: dict[str, list[Figures]] = {}
        for drawing in range(args.drawings):
            for name, worse in variants(data, drawing):
                if args.only not in f"{data.name}: {name}":
                    continue
                is_drawn = (
                    len(worse.truth) != len(data.truth)
                    or name.split(", ")[-1] in OF_VOTES
                )
                if drawing and not is_drawn and not args.answers:
                    continue
                found = measure(worse)
                if args.answers:
                    found |= after_answers(worse, drawing)
                drawings.setdefault(name, []).append(found)
        for name, each in drawings.items():
            results[f"{data.name}: {name}"] = mean(each)
            print(
                f"| {data.name}: {name} | {cells(mean(each), columns)} |",
                flush=True,
            )
    if not results:
        parser.error(
            f"{args.folder} holds no set of the layout that --help describes."
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
