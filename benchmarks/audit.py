"""How often the audit's intervals hold, and how many answers its drawing saves.

    python benchmarks/audit.py results/demo [--audits 500] [--budgets 50 100 200 400] [--methods M]

simulates audits of a dataset whose labels are known, from what a run left of it. Coverage is how
many of the 95 % intervals hold the truth over all images. The truth is exact, for the images are
finite in number. Beside it stand intervals from as many images drawn at random without strata
(Wilson's for accuracies, Student's for paired differences). The last column is the share of their
answers that the audit needs for an interval as wide as theirs: the squared ratio of the mean
widths. In the second tables, the person names a wrong class in five answers of a hundred.
"""

import argparse
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from latteclip.audit import score
from latteclip.audit.sampling import (
    STRATA,
    Floats,
    Ints,
    Population,
    SamplingPlan,
    read_population,
    sampling_order,
    stratify,
)
from latteclip.audit.score import Interval, share
from latteclip.core import tables
from latteclip.labels.answers import CLASS, Answer

WRONG = 0.05  # of the answers, of the person who errs


@dataclass(frozen=True)
class Data:
    """A dataset whose labels are known."""

    population: Population
    strata: Ints  # [N]
    labels: Ints  # [N]
    hits: Floats  # [N, K]
    names: list[str]  # what is estimated: K accuracies, and all differences
    truth: Floats  # of each


def read(folder: Path, methods: list[str] | None) -> Data:
    """Read the results of all methods or of some."""
    population = read_population(folder)
    if methods:
        keep = [
            k for k, (method, _) in enumerate(population.candidates) if method in methods
        ]
        population = replace(
            population,
            candidates=[population.candidates[k] for k in keep],
            predictions=population.predictions[:, keep],
            model=keep.index(population.model),
        )
    path = folder / "images.parquet"
    label = tables.lookup(path, tables.IMAGES, "image_id", "label", population.image_ids)
    labels = np.array(label, dtype=np.int_)
    hits = (population.predictions == labels[:, None]).astype(np.float64)
    rights = hits.mean(axis=0)
    compared = [*combinations(range(hits.shape[1]), 2)]
    names = [method for method, _ in population.candidates]
    return Data(
        population,
        stratify(population),
        labels,
        hits,
        [*names, *(f"{names[one]} - {names[other]}" for other, one in compared)],
        np.array([*rights, *(rights[one] - rights[other] for other, one in compared)]),
    )


def answered_labels(
    data: Data, drawn: Ints, wrong: float, rng: np.random.Generator
) -> Ints:
    """Return the classes that a person names for images [n]."""
    labels = data.labels[drawn].copy()
    c = len(data.population.classnames)
    errs = rng.random(len(drawn)) < wrong
    labels[errs] = (labels[errs] + rng.integers(1, c, errs.sum())) % c
    return labels


def audit(data: Data, n: int, wrong: float, rng: np.random.Generator) -> Floats:
    """Return the ends of all intervals of one simulated audit [E, 2]."""
    order = np.argsort(sampling_order(data.strata, rng))
    drawn = order[:n]
    answers = {
        data.population.image_ids[row]: Answer("", CLASS, data.population.classnames[label])
        for row, label in zip(drawn, answered_labels(data, drawn, wrong, rng), strict=True)
    }
    plan = SamplingPlan(
        "", data.population.classnames, data.population.image_ids, data.strata, order, ""
    )
    columns = zip(data.population.candidates, data.population.predictions.T, strict=True)
    runs = [score.RunPredictions(run, True, own) for run, own in columns]
    found = score.score("", plan, runs, answers)
    ends = [(one.low, one.high) for one in found.accuracies]
    return np.array([*ends, *((one.low, one.high) for one in found.comparisons)])


def simple(data: Data, n: int, wrong: float, rng: np.random.Generator) -> Floats:
    """Return the same from a simple random sample."""
    drawn = rng.permutation(len(data.labels))[:n]
    labels = answered_labels(data, drawn, wrong, rng)
    hits = (data.population.predictions[drawn] == labels[:, None]).astype(np.float64)
    size = np.array([len(data.labels)])
    strata = np.zeros(n, dtype=np.int_)
    ends = [share(hits[:, k], strata, size) for k in range(hits.shape[1])]
    for other, one in combinations(range(hits.shape[1]), 2):
        ends.append(_paired(hits[:, one] - hits[:, other], len(data.labels)))
    return np.array([[one.low, one.high] for one in ends])


def _paired(values: Floats, images: int) -> Interval:
    """Return Student's interval for a mean, with the correction for finite populations."""
    n = len(values)
    error = np.sqrt(values.var(ddof=1) / n * (1 - n / images))
    reach = float(stats.t.ppf(0.975, n - 1) * error)
    return Interval(values.mean(), values.mean() - reach, values.mean() + reach)


def figures(data: Data, ends: Floats) -> tuple[Floats, Floats, Floats]:
    """Return coverage, mean width and share decided of each estimate, from ends [A, E, 2]."""
    low = ends[..., 0]
    high = ends[..., 1]
    close = 1e-9  # of sums in another order
    holds = (low <= data.truth + close) & (data.truth - close <= high)
    decided = (low > 0) | (high < 0)
    return (
        100 * holds.mean(axis=0),
        100 * (high - low).mean(axis=0),
        100 * decided.mean(axis=0),
    )


def table(data: Data, n: int, audits: int, wrong: float, seed: int = 0) -> None:
    """Print the figures of one budget."""
    rng = np.random.default_rng(seed)
    own = figures(data, np.stack([audit(data, n, wrong, rng) for _ in range(audits)]))
    other = figures(data, np.stack([simple(data, n, wrong, rng) for _ in range(audits)]))
    k = data.hits.shape[1]
    print(f"\n{n} answers{', 5 % of them wrong' if wrong else ''}")
    print(f"{'':44} {'truth':>6} {'cover':>6} {'width':>6} {'decided':>7} |{'simple: cover':>14}"
          f" {'width':>6} {'decided':>7} | answers")  # fmt: skip
    for e, name in enumerate(data.names):
        decides = [f"{one[2][e]:7.1f}" if e >= k else " " * 7 for one in (own, other)]
        ratio = (own[1][e] / other[1][e]) ** 2 if other[1][e] else float("nan")
        print(f"{name:44} {100 * data.truth[e]:6.1f} {own[0][e]:6.1f} {own[1][e]:6.1f} {decides[0]}"
              f" | {other[0][e]:13.1f} {other[1][e]:6.1f} {decides[1]} | {ratio:6.2f}")  # fmt: skip
    for name, part in (("accuracies", slice(0, k)), ("differences", slice(k, None))):
        covers = [
            f"{one[0][part].min():.1f}, mean {one[0][part].mean():.1f}"
            for one in (own, other)
        ]
        print(f"{name}: least coverage {covers[0]}; of simple samples {covers[1]}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--audits", type=int, default=500)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--methods", nargs="+")
    args = parser.parse_args()
    data = read(args.folder, args.methods)
    n = len(data.labels)
    counts = np.bincount(data.strata, minlength=len(STRATA))
    print(f"{args.folder}: {n} images; ", dict(zip(STRATA, counts.tolist(), strict=True)))
    for wrong in (0.0, WRONG):
        for budget in args.budgets:
            if budget <= n:
                table(data, budget, args.audits, wrong)


if __name__ == "__main__":
    main()
