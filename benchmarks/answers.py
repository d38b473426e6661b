"""What answers add beside a logistic regression that learns from the same answers alone.

    python benchmarks/answers.py [--real FOLDER] [--results results/NAME ...] [--drawings 5]
        [--counts 20 50 100 200 400] [--json FILE]

FOLDER has the layout that `benchmarks/real_models.py` describes. Results are finished runs of the
target `labels` on datasets with labels and a test split. Labels only score: they simulate a person.

Half of the answers are those of `latteclip teach`, about the images with the smallest margins. The
other half are about images drawn at random, as those that check. The logistic regression reads
CLIP's features, whitened as for the fused labels or as they are, whichever is better by the labels.

For each set and number of answers, in percent and means over drawings: labels of the unasked images
and new images, by the fused labels and by the regression, and the standard error of the difference.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import real_models
import teach
import torch
import torch.nn.functional as F

from latteclip.labels.fusion import ROUNDS, LabelModel, fuse
from latteclip.labels.label_sources import (
    CentredFeatures,
    ClipFeatures,
    LabelledRows,
    Votes,
)

COUNTS = (20, 50, 100, 200, 400)
STEPS = 2  # of the model after ten answers
Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Images whose labels are known, with votes."""

    name: str
    images: ClipFeatures
    votes: Votes
    others: Sequence[CentredFeatures]
    labels: torch.Tensor  # [N]
    new: torch.Tensor  # [M, D] centred as the images are
    new_labels: torch.Tensor  # [M]

    @property
    def n_classes(self) -> int:
        return len(self.images.texts.bias)

    def labelled(self, rows: torch.Tensor) -> LabelledRows:
        """Return answers about rows."""
        rows = rows.sort().values
        shares = F.one_hot(self.labels[rows], self.n_classes).double()
        return LabelledRows(len(self.labels), rows, shares, rows < 0)


def real(folder: Path) -> Iterator[Case]:
    """Return the sets of real models with votes."""
    for data in real_models.read(folder):
        if data.options is not None:
            images = data.images()
            white = data.new_features.double() @ images.whitening
            yield Case(
                data.name,
                images,
                real_models.first_votes(data),
                (),
                data.labels,
                (white - images.mean) / images.length,
                data.new_labels,
            )


def finished(folder: Path) -> Case:
    """Return the dataset of a finished run."""
    data = teach.Data(folder, captions=True, swap=0.0)
    others = data.start.others
    return Case(
        folder.name,
        data.images,
        data.votes,
        others,
        data.classes,
        data.test,
        data.test_classes,
    )


def asked(case: Case, n: int, seed: int) -> torch.Tensor:
    """Return [n] rows: half by the smallest margins, ten at a time, half drawn at random."""
    model = LabelModel(case.images, case.votes, case.others)
    model.learn(ROUNDS)
    rows = torch.empty(0, dtype=torch.long)
    while len(rows) < n // 2:
        best = model.log_posterior(slice(None)).exp().topk(2, dim=1).values
        margins = best[:, 0] - best[:, 1]
        margins[rows] = torch.inf
        rows = torch.cat([rows, margins.argsort()[: min(10, n // 2 - len(rows))]])
        model = model.answered(case.labelled(rows))
        for _ in range(STEPS):
            model.step(light=True)
    is_open = torch.ones(len(case.labels), dtype=torch.bool)
    is_open[rows] = False
    rest = is_open.nonzero()[:, 0]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    return torch.cat([rows, rest[order[: n - len(rows)]]])


def measure(case: Case, n: int, drawings: int) -> Figures:
    """Return the figures of a number of answers."""
    white = torch.as_tensor(case.images.centred[torch.arange(len(case.labels))]).double()
    unwhitened = torch.linalg.inv(case.images.whitening)
    views = [(white, case.new), (white @ unwhitened, case.new @ unwhitened)]
    rows = []
    for seed in range(drawings):
        answered = asked(case, n, seed)
        is_open = torch.ones(len(case.labels), dtype=torch.bool)
        is_open[answered] = False
        found = fuse(case.images, case.votes, case.others, case.labelled(answered))
        own = found.labels == case.labels
        new = found.head.logits(case.new).argmax(dim=1) == case.new_labels
        figures = [_percent(own[is_open]), _percent(new)]
        alone = []
        for pool, unseen in views:
            x, y = (F.normalize(part, dim=1) for part in (pool, unseen))
            weights = real_models.regression(
                x[answered], case.labels[answered], case.n_classes
            )
            of_pool = (x[is_open] @ weights.T).argmax(dim=1) == case.labels[is_open]
            of_new = (y @ weights.T).argmax(dim=1) == case.new_labels
            alone.append([_percent(of_pool), _percent(of_new)])
        rows.append([*figures, *np.max(alone, axis=0)])
    labels, new, labels_alone, new_alone = np.mean(rows, axis=0).round(1).tolist()
    differences = np.array(rows)[:, :2] - np.array(rows)[:, 2:]
    errors = differences.std(axis=0, ddof=1) if drawings > 1 else np.full(2, np.nan)
    return {
        "labels": labels,
        "labels_alone": labels_alone,
        "new": new,
        "new_alone": new_alone,
        "standard_errors": (errors / drawings**0.5).round(2).tolist(),
    }


def _percent(right: torch.Tensor) -> float:
    return 100 * right.double().mean().item()


def main() -> None:
    """Print a line for each set and number of answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=Path)
    parser.add_argument("--results", type=Path, nargs="*", default=[])
    parser.add_argument("--drawings", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [*(real(args.real) if args.real else ()), *map(finished, args.results)]
    results: dict[str, dict[int, Figures]] = {}
    print("set | answers | labels | regression | new | regression | standard errors")
    for case in cases:
        results[case.name] = {}
        for n in args.counts:
            if n <= 0.75 * len(case.labels):
                found = measure(case, n, args.drawings)
                results[case.name][n] = found
                print(
                    f"{case.name} | {n} | " + " | ".join(map(str, found.values())),
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
