"""What a learning-rate range test (Smith 2017) would take, to compare with `find_learning_rate`.

    python benchmarks/range_test.py results/demo [results/<dataset> ...]

Each run's labels train its CLIP for as many steps as one training of `recommended_single` has,
while the rate grows from LOW to HIGH, the same factor in each step. Of the smoothed loss it prints
the rate where it falls fastest, and a tenth of the rate where it is lowest.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from trainings import flyp_settings, training_files

from latteclip.core.signals import Signals
from latteclip.train.data import schedule
from latteclip.train.settings import Recipe, recipe_for
from latteclip.train.training import DivergedError, Setup

LOW = 1e-6
HIGH = 1e-1
SMOOTHING = 0.9  # of the loss, from step to step
SEED = 0


class GrowingRate(Recipe):
    """A recipe whose rate grows exponentially."""

    def rate(self, step: int, total: int) -> float:
        return float(LOW * (HIGH / LOW) ** (step / (total - 1)))


def main() -> None:
    """Print one line for each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="folder of a dataset's results"
    )
    print("| run | steps | loss falls fastest | a tenth of the rate at the lowest loss |")
    print("|---|---:|---:|---:|")
    for results in parser.parse_args().results:
        history = range_test(results)
        fastest, lowest = suggested(history)
        print(
            f"| {results.name} | {len(history)} | {fastest:.1e} | {lowest:.1e} |",
            flush=True,
        )


def range_test(results: Path) -> list[tuple[float, float]]:
    """Return the rate and the loss of each step, until it is not finite or all steps are taken."""
    settings = flyp_settings(results)
    setup = Setup(training_files(results), settings, "cpu", torch.get_num_threads())
    n = len(setup.inputs.paths)
    recipe = GrowingRate(**dict(recipe_for(settings.method.finetune, n, LOW)))
    per_epoch = recipe.steps_per_epoch(n)
    total = recipe.epochs * per_epoch
    torch.manual_seed(SEED)
    training = setup.training(recipe, Signals(), SEED)
    keys = schedule(n, recipe.batch_size, total, SEED)
    batches = setup.batches(setup.images(str(results), SEED), keys)
    try:
        for _ in training.steps(batches, total, per_epoch):
            training.flush_metrics()
    except DivergedError:
        pass
    return [(row["lr"], row["loss"]) for row in training.history]


def suggested(history: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the rate where the smoothed loss falls fastest, and a tenth of that of its minimum."""
    smooth = []
    mean = 0.0
    for step, (_, loss) in enumerate(history):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth.append(mean / (1 - SMOOTHING ** (step + 1)))
    lowest = int(np.argmin(smooth))
    fastest = int(np.argmin(np.gradient(smooth)[: lowest + 1]))
    return history[fastest][0], history[lowest][0] / 10


if __name__ == "__main__":
    main()
