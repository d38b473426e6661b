"""Ways to a learning rate without labels: a range test beside the search of the workflow.

    snakemake -j2 --config dataset=demo method=recommended
    python benchmarks/rates.py --config dataset=demo

prints the rates that `find_learning_rate` compared, and the one that a learning-rate range test
(Smith 2017) finds on the same images: the rate rises exponentially over as many steps as one short
training has, and a tenth of the rate with the lowest smoothed loss is taken. What whole trainings
make of rates is in the table of `config/rates.yaml`. It is run in the folder of the results.
"""

import argparse
import contextlib
import json
import math
from pathlib import Path

import torch
import yaml

from latteclip.config import layers, stage_params
from latteclip.config.configuration import Configuration
from latteclip.core.files import from_values
from latteclip.core.signals import Signals
from latteclip.train import data
from latteclip.train.settings import FinetuneSettings
from latteclip.train.training import Setup, prepare_training

METHOD = "recommended_single"
LOWEST, HIGHEST = 1e-7, 1e-1
SMOOTHING = 0.7  # of the loss so far in its running mean


def range_test(files: data.TrainingFiles, settings: FinetuneSettings, threads: int) -> float:
    """Return a tenth of the rate at which the smoothed loss of a ramp is lowest."""
    torch.manual_seed(0)
    setup = Setup.load(files, settings, "auto", threads)
    n = len(setup.inputs.paths)
    recipe = settings.finetune.recipe(n, LOWEST)
    steps = max(20, recipe.epochs * recipe.steps_per_epoch(n) // 5)
    compute, size = settings.compute, min(recipe.batch_size, n)
    prepare_training(setup.clip, compute, recipe.batch_norm, setup.texts.tokens, size)
    training = setup.training(recipe, Signals(), 0)
    schedule = data.schedule(n, recipe.batch_size, steps, 0)
    lowest, found, mean = math.inf, LOWEST, math.nan
    for step, batch in enumerate(setup.batches(setup.images(".", 0), schedule)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
        loss = training.step(batch, rate)["loss"].item()
        mean = loss if math.isnan(mean) else SMOOTHING * mean + (1 - SMOOTHING) * loss
        if mean < lowest:
            lowest, found = mean, rate
        if not math.isfinite(loss):
            break
    return found / 10


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", type=Path)
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    given = yaml.safe_load(args.configfile.read_text()) if args.configfile else {}
    given |= {"method": METHOD, **dict(pair.split("=", 1) for pair in args.config)}
    configuration = Configuration(layers.defaults(), given)
    for dataset in configuration.datasets:
        folder = Path("results", dataset)
        with contextlib.suppress(FileNotFoundError):
            print(dataset, json.loads((folder / METHOD / "learning_rate.json").read_text()))
        settings = from_values(
            FinetuneSettings, stage_params.find_learning_rate(configuration, dataset, METHOD)
        )
        labels = f"results/{dataset}/fused_labels.parquet"
        files = data.TrainingFiles(
            str(folder / "images.parquet"),
            str(folder / "pseudo_labels.parquet"),
            fused_labels=labels,
        )
        print(f"{dataset}: range test {range_test(files, settings, args.threads):.1e}")


if __name__ == "__main__":
    main()
