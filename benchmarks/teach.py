"""What answers teach, how well they check labels, and what they guarantee.

    python benchmarks/teach.py results/dtd [--errs 0.05] [--only learning|guarantee]

answers the questions of `latteclip teach` by the labels of a finished run. Labels only score.

- learning: labels and test accuracy by answers. Of `filled in`, the answers stand in the labels and
  nothing learns from them.
- guarantee: drawings of 100 images that check, after 50 answers that taught. All answers teach,
  and each check is learned without its answer, as in the workflow: whether the interval of right
  labels holds, and whether the promises of `labels export --max-error` and `predict --abstain` are
  kept.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.audit.teach import TeachingSession
from latteclip.clip.features import read_features
from latteclip.core import tables
from latteclip.core.answers import CLASS, Answer
from latteclip.labels.fuse_labels import labels_right
from latteclip.labels.guarantees import pac_threshold
from latteclip.labels.label_model import LabelModel
from latteclip.labels.votes import Answers

Ints = npt.NDArray[np.int_]
COUNTS = (20, 50, 100, 200)
SEEDS = 3  # drawings where answers are drawn at random
TAUGHT, CHECKED = 50, 100
ERRORS = (0.05, 0.1, 0.2)


class Data:
    """A dataset whose labels are known, and a person who answers about it."""

    def __init__(self, folder: Path, errs: float) -> None:
        self.session = TeachingSession(folder, 2 * max(COUNTS))
        self.inputs = self.session.inputs
        index = tables.read(folder / "images.parquet")
        self.classes = labels_of(index, self.session.index["image_id"])
        test = index.filter(pc.equal(index["split"], "test"))
        self.test_classes = labels_of(index, test["image_id"])
        features = read_features(
            str(folder / "pseudo_labels.parquet"), test["image_id"]
        )
        self.test = features[:].numpy()
        rng = np.random.default_rng(0)
        self.n_classes = len(self.inputs.classnames)
        shift = rng.integers(1, self.n_classes, len(self.classes))
        wrong = rng.random(len(self.classes)) < errs
        self.named = (self.classes + shift * wrong) % self.n_classes
        self.asked = self._asked()

    def _asked(self) -> list[int]:
        """Return the rows in the order in which the page asks about them."""
        row_of = {name: row for row, name in enumerate(self.session.ids)}
        answers: dict[str, Answer] = {}
        rows: dict[int, None] = {}
        while len(answers) < max(COUNTS):
            questions = self.session.open_questions(answers)
            if not questions:
                break
            one = questions[0]
            row = row_of[one.image_id]
            name = self.session.classnames[int(self.named[row])]
            answers[one.image_id] = Answer(one.image_id, CLASS, name, one.phase)
            rows[row] = None
        return list(rows)

    def fit(
        self, taught: Ints, drawn: Ints | None = None
    ) -> tuple[LabelModel, Answers]:
        """Return the labels after answers about some rows."""
        drawn = np.zeros(0, int) if drawn is None else drawn
        rows = np.concatenate([taught, drawn])
        order = np.argsort(rows)
        shares = np.eye(self.n_classes)[self.named[rows]]
        is_drawn = np.arange(len(rows)) >= len(taught)
        answers = Answers(rows[order], shares[order], is_drawn[order])
        return self.inputs.fit(answers), answers


def labels_of(index: pa.Table, ids: pa.ChunkedArray) -> Ints:
    """Return the true classes of images."""
    column = index["label"].take(pc.index_in(ids, index["image_id"]))
    return np.asarray(column.to_numpy(), np.int64)


def learning(data: Data) -> None:
    """Print what answers teach."""
    n = len(data.classes)
    before = data.inputs.fit().labels_
    print("answers | chosen by | labels | of the unasked | filled in | test")
    for k in (0, *COUNTS):
        for how in ("teach", "random") if k else ("-",):
            found = []
            for seed in range(SEEDS if how == "random" else 1):
                order = np.random.default_rng(seed).permutation(n)
                rows = np.array(
                    (order if how == "random" else data.asked)[:k], int
                )
                model, _ = data.fit(rows)
                right = model.labels_ == data.classes
                filled = before.copy()
                filled[rows] = data.named[rows]
                unasked = np.setdiff1d(np.arange(n), rows)
                test = model.predict(data.test) == data.test_classes
                parts = right, right[unasked], filled == data.classes, test
                found.append([100 * part.mean() for part in parts])
            cells = [f"{value:.1f}" for value in np.mean(found, axis=0)]
            print(f"{k} | {how} | {' | '.join(cells)}", flush=True)


def guarantee(data: Data, drawings: int) -> None:
    """Print how often intervals hold and promises are kept."""
    n = len(data.classes)
    taught = np.array(data.asked[:TAUGHT], int)
    rest = np.setdiff1d(np.arange(n), taught)
    holds = []
    labels: dict[float, list[tuple[float, float]]] = {
        error: [] for error in ERRORS
    }
    heads: dict[float, list[tuple[float, float]]] = {error: [] for error in ERRORS}
    for seed in range(drawings):
        drawn = np.sort(np.random.default_rng(seed).permutation(rest)[:CHECKED])
        model, answers = data.fit(taught, drawn)
        by_head = model.heads_[0].held_out
        hits = model.held_out_labels_ == data.named[drawn]
        found = labels_right(n, answers, model.held_out_labels_)
        final = model.labels_ == data.classes
        holds.append(found.low <= final.mean() <= found.high)
        best = by_head.argmax(axis=1) == data.named[drawn]
        predicted = model.predict_proba(data.test)
        test = predicted.argmax(axis=1) == data.test_classes
        for error in ERRORS:
            line = pac_threshold(model.held_out_confidence_, ~hits, error)
            taken = model.confidence_ >= line
            labels[error].append((taken.mean(), (taken & ~final).mean()))
            line = pac_threshold(by_head.max(axis=1), ~best, error)
            taken = predicted.max(axis=1) >= line
            heads[error].append((taken.mean(), (taken & ~test).mean()))
    print(
        f"the interval of right labels holds in {100 * np.mean(holds):.0f} % of {drawings}"
    )
    for name, by_error in (("labels", labels), ("test images", heads)):
        for error, pairs in by_error.items():
            shares, wrongs = np.array(pairs).T
            print(
                f"{100 * error:.0f} %, {name}: {100 * shares.mean():.0f} % taken, "
                f"{100 * wrongs.mean():.1f} % wrong, kept in "
                f"{100 * (wrongs <= error).mean():.0f} %",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--errs", type=float, default=0.0, help="share of wrong answers"
    )
    parser.add_argument("--only", choices=("learning", "guarantee"))
    parser.add_argument("--drawings", type=int, default=100)
    args = parser.parse_args()
    if (args.folder / "answers.json").exists():
        parser.error(
            f"{args.folder} has a person's answers; copy it without answers.json"
        )
    data = Data(args.folder, args.errs)
    if args.only != "guarantee":
        learning(data)
    if args.only != "learning":
        guarantee(data, args.drawings)


if __name__ == "__main__":
    main()
