"""What answers teach, how well they check, and what they guarantee.

    python benchmarks/teach.py results/dtd [--without-captions] [--errs 0.1] [--drawings 500]

answers the questions of `latteclip teach` by the labels of a finished run, whose captions and
features it reads. Labels only score. Of `filled in`, the answers stand in the labels and nothing
learns from them. A probe is a logistic regression on the same answers alone. Standard errors of the
test accuracy are binomial.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from latteclip.audit.teach import TeachingSession
from latteclip.core import tables
from latteclip.labels.answers import CLASS, Answer, LabelledRows
from latteclip.labels.features import read_features
from latteclip.labels.fusion import Fusion, LabelModel, cross_fit
from latteclip.labels.guarantees import confidence_sequence, conformal_accepted, pac_threshold
from latteclip.labels.label_sources import Votes

COUNTS = (20, 50, 100, 200)
SEEDS = 5  # drawings where answers are drawn at random


class Data:
    """A dataset whose labels are known, and the model of its labels without answers."""

    def __init__(self, folder: Path, *, captions: bool) -> None:
        self.session = TeachingSession(folder, 1, checking=0)
        start = self.session.model.state
        votes = start.votes
        if not captions:
            votes = Votes(torch.zeros_like(votes.has), votes.probabilities)
        self.images, self.votes = start.images, votes
        labels, _ = tables.read(folder / "images.parquet", tables.IMAGES)
        self.classes = self.label_column(labels, self.session.index["image_id"])
        test = labels.filter(pc.equal(labels["split"], "test"))
        self.test_classes = self.label_column(labels, test["image_id"])
        features = read_features(str(folder / "pseudo_labels.parquet"), test["image_id"])
        mean = self.images.mean.float()
        self.test = (torch.as_tensor(features[:]) - mean).double() / self.images.length
        self.start = LabelModel(self.images, self.votes)

    @staticmethod
    def label_column(labels: pa.Table, ids: pa.ChunkedArray) -> torch.Tensor:
        """Return the true classes of images."""
        column = labels["label"].take(pc.index_in(ids, labels["image_id"]))
        return torch.from_numpy(column.to_numpy().astype(np.int64))

    def labelled(self, rows: list[int], named: torch.Tensor) -> LabelledRows:
        """Return answers about rows."""
        index = torch.tensor(sorted(rows), dtype=torch.long)
        shares = F.one_hot(named[index], len(self.images.texts)).double()
        return LabelledRows(index, shares, torch.zeros(len(index), dtype=torch.bool))

    def figures(self, rows: list[int], named: torch.Tensor) -> list[float]:
        """Return labels right of all, of the unasked, filled in, and test accuracies."""
        before = self.before.labels.clone()
        fusion = self.start.answered(self.labelled(rows, named)).fused() if rows else self.before
        right = fusion.labels == self.classes
        unasked = torch.ones(len(right), dtype=torch.bool)
        unasked[rows] = False
        before[rows] = named[rows]
        head = (self.test @ fusion.weights.T).argmax(dim=1) == self.test_classes
        parts = (right, right[unasked], before == self.classes, head)
        return [*(100 * part.double().mean().item() for part in parts), self.probe(rows, named)]

    def probe(self, rows: list[int], named: torch.Tensor) -> float:
        """Return the test accuracy of a logistic regression on the answers alone."""
        if not rows:
            return float("nan")
        every = torch.arange(len(self.classes))
        x = F.normalize(torch.as_tensor(self.images.centred[every]).double(), dim=1)[rows]
        weights = torch.zeros(len(self.images.texts), x.shape[1], dtype=torch.float64)
        weights.requires_grad_()
        optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(10 * x @ weights.T, named[rows], reduction="sum")
            loss = loss + 0.5 * weights.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        scores = F.normalize(self.test, dim=1) @ weights.detach().T
        return 100 * (scores.argmax(dim=1) == self.test_classes).double().mean().item()

    @property
    def before(self) -> Fusion:
        """The labels without answers."""
        if not hasattr(self, "_before"):
            self._before = LabelModel(self.images, self.votes).fused()
        return self._before


def asked(data: Data, folder: Path, n: int, named: torch.Tensor) -> tuple[list[int], list[Answer]]:
    """Return the rows that `latteclip teach` asks about, in order, and the answers."""
    session = TeachingSession(folder, n, checking=0)
    if not data.start.is_informed:
        session.model = LabelModel(data.images, data.votes)
    row_of = {name: row for row, name in enumerate(session.ids)}
    answers: dict[str, Answer] = {}
    rows = []
    while questions := session.open_questions(answers):
        one = questions[0]
        row = row_of[one.image_id]
        # A second answer errs no less: the truth is named with the same probability.
        name = session.classnames[int(named[row])]
        answers[one.key] = Answer(one.image_id, CLASS, name, one.phase, repeat=one.repeat)
        if not one.repeat:
            rows.append(row)
    return rows, list(answers.values())


def person(data: Data, errs: float, seed: int = 0) -> torch.Tensor:
    """Return the classes that a person names, some of them wrong."""
    rng = np.random.default_rng(seed)
    named, c = data.classes.clone(), len(data.images.texts)
    wrong = torch.from_numpy(rng.random(len(named)) < errs)
    shift = torch.from_numpy(rng.integers(1, c, len(named)))
    named[wrong] = (named[wrong] + shift[wrong]) % c
    return named


def learning(data: Data, folder: Path, errs: float) -> list[int]:
    """Print what answers teach; return the asked rows."""
    named = person(data, errs)
    rows, _ = asked(data, folder, max(COUNTS), named)
    error = 100 * (0.25 / len(data.test)) ** 0.5
    print(f"\n{len(data.classes)} training images; standard error of the test at most {error:.1f}")
    print("answers | chosen by | labels | of the unasked | filled in | test | probe on the answers")
    for k in (0, *COUNTS):
        for how in ("teach", "random") if k else ("-",):
            found = []
            for seed in range(SEEDS if how == "random" else 1):
                order = np.random.default_rng(seed).permutation(len(named)).tolist()
                found.append(data.figures((order if how == "random" else rows)[:k], named))
            cells = [f"{mean:.1f}" for mean in np.mean(found, axis=0)]
            if how == "random":
                spread = np.std(found, axis=0, ddof=1)
                cells = [f"{c} +- {s:.1f}" for c, s in zip(cells, spread, strict=True)]
            print(f"{k} | {how} | " + " | ".join(cells), flush=True)
    return rows


def checking(data: Data, rows: list[int], drawings: int, folds: int) -> None:
    """Print how often intervals hold, and what is guaranteed, after 50 answers that taught."""
    taught = rows[:50]
    labelled = data.labelled(taught, data.classes)
    fusion = data.start.answered(labelled).fused()
    rest = np.setdiff1d(np.arange(len(data.classes)), taught)
    right = (fusion.labels == data.classes).numpy()
    n, truth = len(rest), right[rest].mean()
    print(f"\nchecking after 50 answers: {100 * truth:.1f} % of the other {n} labels are right")
    for m in (25, 50, 100):
        holds, widths = [], []
        for seed in range(drawings):
            order = np.random.default_rng(seed).permutation(rest)[:m]
            hits = np.cumsum(right[order])
            moments = [
                confidence_sequence(int(hits[j - 1]), j, n) for j in sorted({*range(5, m, 10), m})
            ]
            holds.append(all(low <= truth <= high for low, high in moments))
            widths.append(moments[-1][1] - moments[-1][0])
        print(
            f"{m} answers: the interval holds at all moments in {100 * np.mean(holds):.1f} % of "
            f"{drawings} drawings; mean width {100 * np.mean(widths):.1f} points"
        )
    confidence = fusion.confidence.numpy().astype(np.float64)
    for m in (50, 100, 200):
        if m >= n:
            continue
        for error in (0.05, 0.1, 0.2):
            wrongs, saved = [], []
            for seed in range(drawings):
                drawn = np.random.default_rng(seed).permutation(rest)[:m]
                threshold = pac_threshold(confidence[drawn], ~right[drawn], error)
                unseen = np.setdiff1d(rest, drawn)
                accepted = confidence[unseen] >= threshold
                wrongs.append((~right[unseen] & accepted).sum() / n)
                saved.append(accepted.mean())
            kept = 100 * np.mean(np.array(wrongs) <= error)
            print(
                f"PAC, {m} answers, {100 * error:.0f} %: {100 * np.mean(saved):.0f} % taken, "
                f"{100 * np.mean(wrongs):.1f} % wrong, kept in {kept:.1f} %"
            )
        shares, used = [], []
        for seed in range(drawings):
            drawn = np.random.default_rng(seed).permutation(rest)[:m]
            unseen = np.setdiff1d(rest, drawn)
            accepted = conformal_accepted(confidence[drawn], ~right[drawn], confidence[unseen], 0.1)
            shares.append((~right[unseen])[accepted].mean() if accepted.any() else 0.0)
            used.append(accepted.mean())
        print(
            f"conformal, {m} answers, 10 %: {100 * np.mean(used):.0f} % used, "
            f"{100 * np.mean(shares):.1f} % of them wrong"
        )
    inside, gaps = [], []
    for seed in range(folds):
        drawn = np.random.default_rng(seed).permutation(rest)[:50].tolist()
        both = data.labelled([*taught, *drawn], data.classes)
        drawn_rows = torch.isin(both.rows, torch.tensor(drawn))
        both = LabelledRows(both.rows, both.shares, drawn_rows)
        checked = cross_fit(data.start, both)
        final = (data.start.answered(both).fused().labels == data.classes).numpy()
        others = np.setdiff1d(rest, drawn)
        low, high = confidence_sequence(int(checked.right.sum()), len(drawn), n)
        inside.append(low <= final[others].mean() <= high)
        gaps.append(checked.right.double().mean().item() - final[others].mean())
    if folds:
        print(
            f"cross-fitted in five folds, 50 answers that also teach, {folds} drawings: estimate "
            f"minus truth {100 * np.mean(gaps):+.1f} points (deviation {100 * np.std(gaps):.1f}), "
            f"the interval holds in {100 * np.mean(inside):.0f} %"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-captions", action="store_true")
    parser.add_argument("--errs", type=float, default=0.0)
    parser.add_argument("--drawings", type=int, default=500)
    parser.add_argument("--cross-fits", type=int, default=10)
    parser.add_argument("--no-checking", action="store_true")
    args = parser.parse_args()
    if (args.folder / "answers.json").exists():
        parser.error(f"{args.folder} has a person's answers; copy it without answers.json")
    data = Data(args.folder, captions=not args.without_captions)
    print(f"{args.folder}, captions: {not args.without_captions}, errs: {args.errs}")
    rows = learning(data, args.folder, args.errs)
    if not args.no_checking:
        checking(data, rows, args.drawings, args.cross_fits)


if __name__ == "__main__":
    main()
