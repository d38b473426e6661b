"""What the probabilities of labels are worth, before and after a person's answers.

    python benchmarks/calibration.py results/demo [--audits 200] [--budgets 50 100 150]

takes what a run left of a dataset with labels. First, the expected calibration error of the labels'
confidence over all training images, which `latteclip labels export` states where nobody answered.
Then audits of the training split are simulated: of each, the error that is reported, from answers
held apart, beside that over all images that were not asked about, mean and deviation over audits.
"""

import argparse
from pathlib import Path

import numpy as np

from latteclip.audit.sampling import read_population, sampling_order, stratify
from latteclip.core import tables
from latteclip.deploy.label_table import calibrate, expected_calibration_error


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 150])
    args = parser.parse_args()
    said = tables.read(args.folder / "fused_labels.parquet", tables.FUSED_LABELS)
    ids = said["image_id"].to_pylist()
    index = args.folder / "images.parquet"
    truth = np.array(tables.lookup(index, tables.IMAGES, "image_id", "label", ids))
    right = (said["fused_label"].to_numpy() == truth).astype(np.float64)
    confidence = said["fused_confidence"].to_numpy().astype(np.float64)
    error = expected_calibration_error(confidence, right, np.ones(len(ids)))
    print(
        f"{args.folder}: {len(ids)} labels, {100 * right.mean():.1f} % right, mean confidence "
        f"{100 * confidence.mean():.1f} %, expected calibration error {error:.3f}"
    )
    population = read_population(args.folder, "train")
    place = {name: row for row, name in enumerate(ids)}
    rows = np.array([place[name] for name in population.image_ids])
    strata = stratify(population)
    rng = np.random.default_rng(0)
    for budget in args.budgets:
        if budget > len(rows):
            continue
        figures = []
        for _ in range(args.audits):
            drawn = np.argsort(sampling_order(strata, rng))[:budget]
            each = np.bincount(strata) / np.bincount(
                strata[drawn], minlength=strata.max() + 1
            )
            own = rows[drawn]
            found = calibrate(confidence[own], right[own], each[strata[drawn]])
            rest = np.setdiff1d(np.arange(len(ids)), own)
            after = expected_calibration_error(
                found(confidence[rest]), right[rest], np.ones(len(rest))
            )
            figures.append((found.error_before, found.error, after))
        mean = np.mean(figures, axis=0)
        spread = np.std(figures, axis=0)
        said_so = [f"{m:.3f} +- {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        print(
            f"{budget} answers of {len(rows)}: before {said_so[0]}, reported {said_so[1]}; over "
            f"the images that were not asked about {said_so[2]}"
        )


if __name__ == "__main__":
    main()
