"""What the study (config/study.yaml) takes: jobs, GPU hours, disk and checkpoints.

Nothing is timed but Snakemake's dry run: hours are counts of images over rates that are themselves
on paper (docs/scaling.md, benchmarks/paper_rates.py).
"""

import argparse
import math
import re
import subprocess
import sys
import time

import open_clip
import paper_rates
import torch
import yaml

from latteclip.cli.estimate import samples
from latteclip.config import job_resources, layers
from latteclip.config.configuration import Configuration

STUDY = layers.CONFIG / "study.yaml"


def configuration() -> Configuration:
    """Return the configuration as the workflow merges it."""
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    return Configuration(layers.defaults(project=None), study)


def jobs() -> tuple[dict[str, int], float]:
    """Return the jobs of a dry run by rule, and how many seconds it took."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--configfile", str(STUDY)]
    began = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    stats = (run.stdout + run.stderr).rpartition("Job stats:")[2].partition("total")[0]
    found = re.findall(r"^(\w+) +(\d+)$", stats, flags=re.MULTILINE)
    return {rule: int(n) for rule, n in found}, seconds


def checkpoint_gb(model: str) -> float:
    """Return the GB of a checkpoint: weights and both moments of AdamW, four bytes a number."""
    with torch.device("meta"):
        clip = open_clip.create_model(model, device="meta", load_weights=False)
    numbers: int = sum(p.numel() for p in clip.parameters())
    return 3 * 4 * numbers / 1e9


def checkpoint_rows(
    study: Configuration, method: str = "latteclip"
) -> list[tuple[str, int, int]]:
    """Return each dataset with the epochs and the whole seconds of one training on an A100."""
    rates = paper_rates.on_paper("A100")
    assert rates.samples
    assert rates.fed
    rows = []
    for dataset in study.datasets:
        images = job_resources.counts(study, dataset)
        assert images
        seen = samples(study, dataset, method, images.train)
        epochs = study.method(method, dataset)["finetune"]["epochs"]
        rows.append((dataset, epochs, round(seen / min(rates.samples, rates.fed))))
    return rows


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    study = configuration()
    planned, seconds = jobs()
    print(f"{sum(planned.values())} jobs; the dry run took {seconds:.1f} s\n")
    print("| rule | jobs |\n|---|---:|")
    for rule, n in planned.items():
        print(f"| {rule} | {n} |")
    print(f"\n| GPU hours, on paper | {' | '.join(paper_rates.PEAKS)} |\n|---|---:|---:|")
    columns = [
        paper_rates.hours(study, paper_rates.on_paper(card)) for card in paper_rates.PEAKS
    ]
    for work in columns[0]:
        print(
            f"| {work} | " + " | ".join(f"{column[work]:.0f}" for column in columns) + " |"
        )
    print(
        "| all | " + " | ".join(f"{sum(column.values()):.0f}" for column in columns) + " |"
    )
    print("\n| disk | GB |\n|---|---:|")
    sizes = paper_rates.disk(study, paper_rates.Sizes())
    for what, size in sizes.items():
        print(f"| {what} | {size:.0f} |")
    print(f"| all | {sum(sizes.values()):.0f} |")
    name = study.datasets[0]
    size = checkpoint_gb(study.section("clip", name)["model"])
    minutes = study.section("compute", name)["checkpoint_minutes"]
    print(f"\nCheckpoints of {size:.2f} GB in one training of each dataset:\n")
    print(
        f"| dataset | seconds (A100) | one an epoch | GB | every {minutes} minutes | GB |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    total = 0, 0, 0
    for dataset, epochs, seconds in checkpoint_rows(study):
        by_clock = math.ceil(seconds / (60 * minutes)) - 1  # none at the last step
        total = total[0] + seconds, total[1] + epochs, total[2] + by_clock
        print(_checkpoint_line(dataset, seconds, epochs, by_clock, size))
    print(_checkpoint_line("all", *total, size))


def _checkpoint_line(
    name: str, seconds: int, epochs: int, by_clock: int, size: float
) -> str:
    cells = f"{epochs} | {epochs * size:.0f} | {by_clock} | {by_clock * size:.0f}"
    return f"| {name} | {seconds} | {cells} |"


if __name__ == "__main__":
    main()
