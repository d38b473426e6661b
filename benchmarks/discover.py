"""Classes that nobody named, by what a real model called the images.

    python benchmarks/discover.py FOLDER

FOLDER holds sets as of `real_models.py`: `<set>.jsonl`, one image a line with `class`, and
`<set>_clip_vitb32.npy`, features [N, D] of a real CLIP. Each set is grouped by each kind of names
that it has: `caption`, and each prompt of other keys whose values are answers by prompt. The names
of the classes only score.

Printed are numbers of classes with Hungarian accuracies in percent: of k-means of features with the
true number, of the classes that are proposed with the true number, and with the number found.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from latteclip.discover import grouping
from latteclip.discover.grouping import NamedFeatures
from latteclip.discover.names import Ints, read_names
from latteclip.discover.propose import propose
from latteclip.labels.image_classes import Whitener


def answers_by_kind(row: dict[str, Any]) -> dict[str, str]:
    """Return the answers about an image by their kinds."""
    found = {"caption": row["caption"]} if row.get("caption") else {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {
                f"{key} {name}": str(text) for name, text in value.items() if text
            }
    return found


def read(path: Path) -> Iterator[tuple[str, Ints, NamedFeatures]]:
    """Yield each kind of names of a set, with true classes and evidence about its images."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    features = np.load(path.with_name(f"{path.stem}_clip_vitb32.npy")).astype(
        np.float32
    )
    for kind in dict.fromkeys(
        kind for row in rows for kind in answers_by_kind(row)
    ):
        used = [i for i, row in enumerate(rows) if kind in answers_by_kind(row)]
        _, truth = np.unique([rows[i]["class"] for i in used], return_inverse=True)
        names = read_names([answers_by_kind(rows[i])[kind] for i in used])
        white = Whitener(features[used])
        yield (
            f"{path.stem} {kind}",
            truth,
            NamedFeatures.of(white(features[used]), names),
        )


def accuracy(labels: Ints, truth: Ints) -> str:
    """Return the number of classes and the Hungarian accuracy in percent."""
    table = np.zeros((labels.max() + 1, truth.max() + 1))
    np.add.at(table, (labels, truth), 1)
    right = table[linear_sum_assignment(-table)].sum()
    return f"{len(table)}: {100 * right / len(truth):.1f}"


def main() -> None:
    """Measure each set of a folder with each kind of its names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print("| names | k-means | given | found |\n|---|---|---|---|")
    for path in sorted(folder.glob("*.jsonl")):
        for name, truth, evidence in read(path):
            n_classes = int(truth.max()) + 1
            ids = [str(i) for i in range(len(truth))]
            labels = [grouping.k_means(evidence.features, n_classes)]
            labels += [propose(ids, evidence, n).labels for n in (n_classes, None)]
            cells = " | ".join(accuracy(each, truth) for each in labels)
            print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
