"""What answers teach, how well they check labels, and what they guarantee.

    python benchmarks/teach.py results/dtd [--errs 0.05] [--swap 0.5] [--imbalance 20]
        [--without-captions] [--only learning|interval|guarantee|abstain] [--runs 500]
        [--drawings 1000]

answers the questions of `latteclip teach` by the labels of a finished run. Labels only score.

- learning: labels and test accuracy by answers. Of `filled in`, the answers stand in the labels and
  nothing learns from them. A probe is a logistic regression on the same answers alone.
- interval: the whole page, with 50 questions that teach and 50 that check, in many runs. A run
  holds if the interval contains the truth after every fifth answer, so a person may stop at any
  time. Where the person errs, each run has other errors.
- guarantee: drawings of images that are checked, after 50 answers that taught.
- abstain: the same for `latteclip predict --abstain` on the test images, for the classifier of the
  labels, and for a logistic regression on the labels of all images but those drawn, which stands
  for a training. All answers teach the labels, as in the workflow.
"""

import argparse
import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import real_models
import torch
import torch.nn.functional as F

from latteclip.audit.teach import TeachingSession
from latteclip.core import tables
from latteclip.core.metadata import IndexMetadata
from latteclip.labels.answers import CLASS, Answer
from latteclip.labels.features import read_features
from latteclip.labels.fusion import FUSED, ROUNDS, Fusion, LabelModel, cross_fit
from latteclip.labels.guarantees import (
    confidence_sequence,
    conformal_accepted,
    pac_threshold,
)
from latteclip.labels.label_sources import LabelledRows, Votes

COUNTS = (20, 50, 100, 200)
SEEDS = 5  # drawings where answers are drawn at random
TAUGHT = 50  # questions of a run that teach
CHECKED = 50  # questions of a run that check


class Data:
    """A dataset whose labels are known, and the model of its labels without answers."""

    def __init__(self, folder: Path, *, captions: bool, swap: float) -> None:
        self.folder = folder
        session = TeachingSession(folder, 1, checking=0)
        start = session.model
        n = len(session.ids)
        self.images = start.images
        self.votes = start.votes
        if not captions:
            self.votes = Votes(torch.zeros(n, dtype=torch.bool), start.votes.probabilities)
        elif swap:
            self.votes = swapped(start.votes, n, swap)
        labels = tables.read(folder / "images.parquet", tables.IMAGES)
        self.classes = self.label_column(labels, session.index["image_id"])
        test = labels.filter(pc.equal(labels["split"], "test"))
        self.test_classes = self.label_column(labels, test["image_id"])
        features = read_features(str(folder / "pseudo_labels.parquet"), test["image_id"])
        white = torch.as_tensor(features[:]).double() @ self.images.whitening
        self.test = (white - self.images.mean) / self.images.length
        self.start = LabelModel(self.images, self.votes, session.model.others)
        self.learned = copy.copy(self.start)
        self.learned.learn(ROUNDS)
        self.before: Fusion = copy.copy(self.start).fused()

    @staticmethod
    def label_column(labels: pa.Table, ids: pa.ChunkedArray) -> torch.Tensor:
        """Return the true classes of images."""
        column = labels["label"].take(pc.index_in(ids, labels["image_id"]))
        return torch.from_numpy(column.to_numpy().astype(np.int64))

    def labelled(self, rows: list[int], named: torch.Tensor) -> LabelledRows:
        """Return answers about rows."""
        index = torch.tensor(sorted(rows), dtype=torch.long)
        shares = F.one_hot(named[index], len(self.images.texts.bias)).double()
        return LabelledRows(
            len(named), index, shares, torch.zeros(len(index), dtype=torch.bool)
        )

    def figures(self, rows: list[int], named: torch.Tensor) -> list[float]:
        """Return labels right of all, of the unasked, filled in, and test accuracies."""
        before = self.before.labels.clone()
        fusion = (
            self.start.answered(self.labelled(rows, named)).fused() if rows else self.before
        )
        right = fusion.labels == self.classes
        unasked = torch.ones(len(right), dtype=torch.bool)
        unasked[rows] = False
        before[rows] = named[rows]
        head = fusion.head.logits(self.test).argmax(dim=1) == self.test_classes
        parts = (right, right[unasked], before == self.classes, head)
        return [
            *(100 * part.double().mean().item() for part in parts),
            self.probe(rows, named),
        ]

    def probe(self, rows: list[int], named: torch.Tensor) -> float:
        """Return the test accuracy of a logistic regression on the answers alone."""
        if not rows:
            return float("nan")
        scores = F.normalize(self.test, dim=1) @ self.regression(rows, named).T
        return 100 * (scores.argmax(dim=1) == self.test_classes).double().mean().item()

    @property
    def training(self) -> torch.Tensor:
        """The L2-normalised centred features of the training images [N, D]."""
        every = torch.arange(len(self.classes))
        return F.normalize(torch.as_tensor(self.images.centred[every]).double(), dim=1)

    def regression(self, rows: list[int], named: torch.Tensor) -> torch.Tensor:
        """Return the weights [C, D] of a logistic regression on the classes of some images."""
        n_classes = len(self.images.texts.bias)
        return real_models.regression(self.training[rows], named[rows], n_classes)


class SimulatedSession(TeachingSession):
    """A session whose model is read once for many runs."""

    def __init__(self, data: Data, budget: int, checking: int) -> None:
        self.data = data
        super().__init__(data.folder, budget, checking)

    def _read_model(self) -> LabelModel:
        return copy.copy(self.data.learned)

    def answer(
        self, named: torch.Tensor, answers: dict[str, Answer], total: int
    ) -> list[int]:
        """Answer questions until there are so many answers, and return the rows in their order."""
        row_of = {name: row for row, name in enumerate(self.ids)}
        rows = []
        while len(answers) < total and (questions := self.open_questions(answers)):
            one = questions[0]
            row = row_of[one.image_id]
            name = self.classnames[int(named[row])]
            answers[one.key] = Answer(
                one.image_id, CLASS, name, one.phase, repeat=one.repeat
            )
            rows += [] if one.repeat else [row]
        return rows


def swapped(votes: Votes, n: int, share: float) -> Votes:
    """Return votes of which a share belongs to other images."""
    rng = np.random.default_rng(0)
    source = np.arange(n)
    chosen = np.flatnonzero(rng.random(n) < share)
    source[chosen] = rng.permutation(chosen)
    row = torch.from_numpy(source)
    texts = votes.text_features
    return Votes(
        votes.has[row],
        lambda rows: votes.probabilities(row[rows]),
        None if texts is None else lambda rows: texts(row[rows]),
    )


def imbalanced(folder: Path, ratio: float, target: Path) -> None:
    """Write an index whose training classes have sizes up to a ratio, beside the other files."""
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())
    table = tables.read(folder / "images.parquet", tables.IMAGES)
    metadata = tables.read_metadata(folder / "images.parquet", IndexMetadata)
    labels = table["label"].to_numpy()
    test = pc.equal(table["split"], "test").to_numpy()
    keep = test.copy()
    rng = np.random.default_rng(0)
    shares = ratio ** -np.linspace(0, 1, int(labels.max()) + 1)
    for label, share in enumerate(rng.permutation(shares)):
        rows = rng.permutation(np.flatnonzero((labels == label) & ~test))
        keep[rows[: max(1, round(share * len(rows)))]] = True
    (target / "images.parquet").unlink()
    part = table.filter(pa.array(keep))
    columns = {name: part[name] for name in part.column_names}
    tables.write(target / "images.parquet", columns, tables.IMAGES, metadata)


def person(data: Data, errs: float, seed: int = 0) -> torch.Tensor:
    """Return the classes that a person names, some of them wrong."""
    rng = np.random.default_rng(seed)
    named = data.classes.clone()
    c = len(data.images.texts.bias)
    wrong = torch.from_numpy(rng.random(len(named)) < errs)
    shift = torch.from_numpy(rng.integers(1, c, len(named)))
    named[wrong] = (named[wrong] + shift[wrong]) % c
    return named


def learning(data: Data, errs: float) -> None:
    """Print what answers teach."""
    named = person(data, errs)
    rows = SimulatedSession(data, max(COUNTS), checking=0).answer(named, {}, max(COUNTS))
    error = 100 * (0.25 / len(data.test)) ** 0.5
    print(
        f"\n{len(data.classes)} training images; standard error of the test at most {error:.1f}"
    )
    print(
        "answers | chosen by | labels | of the unasked | filled in | test | probe on the answers"
    )
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


def interval(data: Data, errs: float, runs: int) -> None:
    """Print how often the page's interval holds."""
    n = len(data.classes)
    rows = []
    session: SimulatedSession | None = None
    taught: dict[str, Answer] = {}
    for seed in range(runs):
        named = person(data, errs, seed)
        if errs or session is None:
            session = SimulatedSession(data, TAUGHT + CHECKED, CHECKED)
            taught = {}
            session.answer(named, taught, TAUGHT)
        run = copy.copy(session)
        answers = dict(taught)
        run._order = np.random.default_rng(seed).permutation(n)
        run.questions = session.questions[:TAUGHT]
        run.answer(named, answers, TAUGHT + CHECKED)
        known = {one.image_id for one in taught.values()}
        rest = torch.tensor([name not in known for name in run.ids])
        by_person = (len(known) + int((run._labels == named)[rest].sum())) / n
        right = torch.where(rest, run._labels, named) == data.classes
        entries = list(answers.items())
        moments = [
            run._checked(dict(entries[:k])) for k in range(TAUGHT + 5, len(entries) + 1, 5)
        ]
        ends = [moment[2:] for moment in moments if moment]
        truth = int(right.sum()) / n
        holds = [
            all(low <= value <= high for low, high in ends) for value in (truth, by_person)
        ]
        rows.append([truth, *holds, ends[-1][1] - ends[-1][0]])
        if len(rows) % 100 == 0 or len(rows) == runs:
            value, true, agreed, width = 100 * np.mean(np.array(rows, dtype=float), axis=0)
            print(
                f"{len(rows)} runs of the page: {value:.1f} % of the labels are right. At all "
                f"moments, the interval holds this share in {true:.1f} %, and the share by the "
                f"person's answers in {agreed:.1f} %. Mean width at the end {width:.1f} points",
                flush=True,
            )


def guarantee(data: Data, errs: float, drawings: int, folds: int) -> None:
    """Print how often a promise is kept, and how many labels it saves."""
    named = person(data, errs)
    taught = SimulatedSession(data, TAUGHT, checking=0).answer(named, {}, TAUGHT)
    fusion = data.start.answered(data.labelled(taught, named)).fused()
    rest = np.setdiff1d(np.arange(len(data.classes)), taught)
    right, agreed = ((fusion.labels == which).numpy() for which in (data.classes, named))
    n = len(rest)
    print(
        f"\nafter {len(taught)} answers {100 * right[rest].mean():.1f} % of the other {n} are right"
    )
    confidence = fusion.confidence.numpy().astype(np.float64)
    for m in (60, 100, 200):
        if m >= n:
            continue
        for error in (0.05, 0.1, 0.2):
            wrongs = []
            saved = []
            for seed in range(drawings):
                drawn = np.random.default_rng(seed).permutation(rest)[:m]
                threshold = pac_threshold(confidence[drawn], ~agreed[drawn], error)
                wrong, share = taken(rest, drawn, confidence >= threshold, right)
                wrongs.append(wrong / n)
                saved.append(share)
            print(
                f"PAC, {m} answers, {100 * error:.0f} %: {100 * np.mean(saved):.0f} % taken, "
                f"{100 * np.mean(wrongs):.1f} % wrong, kept in "
                f"{100 * np.mean(np.array(wrongs) <= error):.1f} %",
                flush=True,
            )
        shares = []
        used = []
        for seed in range(drawings):
            drawn = np.random.default_rng(seed).permutation(rest)[:m]
            unseen = np.setdiff1d(rest, drawn)
            accepted = conformal_accepted(
                confidence[drawn], ~agreed[drawn], confidence[unseen], 0.1
            )
            shares.append((~right[unseen])[accepted].mean() if accepted.any() else 0.0)
            used.append(accepted.mean())
        print(
            f"conformal, {m} answers, 10 %: {100 * np.mean(used):.0f} % used, "
            f"{100 * np.mean(shares):.1f} % of them wrong",
            flush=True,
        )
    if folds:
        cross_fitted(data, named, taught, folds)


def taken(
    rest: npt.NDArray[np.int_],
    drawn: npt.NDArray[np.int_],
    accepted: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
) -> tuple[int, float]:
    """Return how many labels are accepted and wrong, and the share that nobody needs to see."""
    unseen = np.setdiff1d(rest, drawn)
    return int((~right & accepted)[unseen].sum()), float(accepted[unseen].mean())


def cross_fitted(data: Data, named: torch.Tensor, taught: list[int], folds: int) -> None:
    """Print how well the workflow checks: by answers that also teach, left out in five folds."""
    rest = np.setdiff1d(np.arange(len(data.classes)), taught)
    n = len(rest)
    m = 100
    found = []
    for seed in range(folds):
        drawn = np.random.default_rng(seed).permutation(rest)[:m]
        both = data.labelled([*taught, *drawn.tolist()], named)
        both = replace(both, drawn=torch.isin(both.rows, torch.from_numpy(drawn)))
        checked = cross_fit(data.start, both)[FUSED]
        fusion = data.start.answered(both).fused()
        right = (fusion.labels == data.classes).numpy()
        others = np.setdiff1d(rest, drawn)
        truth = right[others].mean()
        hits = int(checked.right.sum())
        low, high = confidence_sequence(hits, m, n)
        sure = checked.confidence.numpy().astype(np.float64)
        threshold = pac_threshold(sure, ~checked.right.numpy(), 0.05)
        accepted = fusion.confidence.numpy().astype(np.float64) >= threshold
        wrong, share = taken(rest, drawn, accepted, right)
        found.append(
            [low <= truth <= high, hits / m - truth, wrong / n <= 0.05, wrong / n, share]
        )
    inside, gap, kept, wrongs, saved = 100 * np.mean(np.array(found, dtype=float), axis=0)
    print(
        f"cross-fitted in five folds, {m} answers that also teach, {folds} drawings: estimate "
        f"minus truth {gap:+.1f} points, the interval holds in {inside:.0f} %; PAC, 5 %: "
        f"{saved:.0f} % taken, {wrongs:.1f} % wrong, kept in {kept:.0f} %"
    )


def abstaining(data: Data, errs: float, drawings: int) -> None:
    """Print how often predictions of test images keep a promise, where all answers also teach."""
    named = person(data, errs)
    taught = SimulatedSession(data, TAUGHT, checking=0).answer(named, {}, TAUGHT)
    rest = np.setdiff1d(np.arange(len(data.classes)), taught)
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(drawings):
        drawn = np.sort(np.random.default_rng(seed).permutation(rest)[:100])
        both = data.labelled([*taught, *drawn.tolist()], named)
        both = replace(both, drawn=torch.isin(both.rows, torch.from_numpy(drawn)))
        fusion = data.start.answered(both).fused()
        head = cross_fit(data.start, both)["image_prototypes"]
        trained = np.setdiff1d(np.arange(len(data.classes)), drawn).tolist()
        weights = data.regression(trained, fusion.labels)
        own = (data.training[drawn] @ weights.T).softmax(dim=1).max(dim=1)
        for name, confidence, right, logits in (
            ("of the labels", head.confidence, head.right, fusion.head.logits(data.test)),
            (
                *("trained", own.values, own.indices == named[drawn]),
                F.normalize(data.test, dim=1) @ weights.T,
            ),
        ):
            best = logits.softmax(dim=1).max(dim=1)
            for error in (0.05, 0.1, 0.2):
                threshold = pac_threshold(
                    confidence.double().numpy(), ~right.numpy(), error
                )
                accepted = best.values >= threshold
                wrong = (
                    (accepted & (best.indices != data.test_classes)).double().mean().item()
                )
                share = accepted.double().mean().item()
                found.setdefault((name, error), []).append((share, wrong))
    for (name, error), pairs in found.items():
        shares, wrongs = np.array(pairs).T
        print(
            f"abstain {100 * error:.0f} %, classifier {name}: {100 * shares.mean():.0f} % of the "
            f"test images predicted, {100 * wrongs.mean():.1f} % (at most {100 * wrongs.max():.1f} "
            f"%) wrong, kept in {100 * (wrongs <= error).mean():.0f} % of {drawings} drawings",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-captions", action="store_true")
    parser.add_argument("--errs", type=float, default=0.0, help="share of wrong answers")
    parser.add_argument(
        "--swap", type=float, default=0.0, help="share of captions of other images"
    )
    parser.add_argument("--imbalance", type=float, default=1.0, help="of the largest class")
    parser.add_argument("--only", choices=("learning", "interval", "guarantee", "abstain"))
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--drawings", type=int, default=1000)
    parser.add_argument("--cross-fits", type=int, default=10)
    args = parser.parse_args()
    if (args.folder / "answers.json").exists():
        parser.error(f"{args.folder} has a person's answers; copy it without answers.json")
    with tempfile.TemporaryDirectory() as folder:
        imbalanced(args.folder, args.imbalance, Path(folder))
        data = Data(Path(folder), captions=not args.without_captions, swap=args.swap)
        print({name: str(value) for name, value in vars(args).items() if value})
        if args.only in (None, "learning"):
            learning(data, args.errs)
        if args.only in (None, "interval"):
            interval(data, args.errs, args.runs)
        if args.only in (None, "guarantee"):
            guarantee(data, args.errs, args.drawings, args.cross_fits)
        if args.only in (None, "abstain"):
            abstaining(data, args.errs, args.cross_fits)


if __name__ == "__main__":
    main()
