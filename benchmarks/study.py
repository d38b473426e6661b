"""What the study (config/study.yaml) takes: jobs, GPU hours and disk, as docs/scaling.md counts.

Nothing is timed but Snakemake's dry run: hours are counts of images over rates that are themselves
on paper.
"""

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass

import yaml

from latteclip.config import layers, shipped
from latteclip.config.configuration import Configuration

STUDY = shipped.CONFIG / "study.yaml"
CORES = 8  # of a job: `threads` of config.yaml
DECODED = 285  # images a second and core (docs/scaling.md)
START_MINUTES = {"caption": 3, "other": 1}  # of a job: engine or imports, model, first files
GB = {"MB": 1e-3, "GB": 1}
CAPTIONER_GB, CLIP_GB, TUNED_GB = 15.1, 0.6, 0.6  # weights; the tuned CLIP in float32


@dataclass(frozen=True)
class Card:
    """Rates of a kind of GPU, of docs/scaling.md."""

    captions: float  # a second
    samples: float  # trained a second
    images: float  # encoded a second


CARDS = {"A100": Card(2.6, 3_200, 14_000), "H100": Card(8.3, 10_000, 45_000)}


def configuration() -> Configuration:
    """The configuration as the workflow merges it."""
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    return Configuration(layers.defaults(project=None), study)


def hours(study: Configuration, card: Card) -> dict[str, float]:
    """GPU hours of each kind of work over all datasets."""
    fed = CORES * DECODED
    seconds = dict.fromkeys(("captions", "fine-tuning", "evaluation and pseudo-labels"), 0.0)
    for dataset in study.datasets:
        counts = study.dataset(dataset)["split"]["counts"]
        seconds["captions"] += 2 * (counts["train"] / card.captions + 60 * START_MINUTES["caption"])
        seconds["evaluation and pseudo-labels"] += (counts["train"] + counts["test"]) / min(
            card.images, fed
        )
        for method, _ in study.runs(dataset):
            if study.is_trained(method):
                epochs = study.method(method, dataset)["finetune"]["epochs"]
                seconds["fine-tuning"] += counts["train"] * epochs / min(card.samples, fed)
                seconds["fine-tuning"] += 60 * START_MINUTES["other"]
                seconds["evaluation and pseudo-labels"] += counts["test"] / min(card.images, fed)
                seconds["evaluation and pseudo-labels"] += 60 * START_MINUTES["other"]
    return {work: total / 3600 for work, total in seconds.items()}


def disk(study: Configuration) -> dict[str, float]:
    """GB of what is kept."""
    downloads, unknown = 0.0, []
    for dataset in study.datasets:
        size = re.search(r"([\d.]+) (MB|GB)", study.dataset(dataset).get("size", ""))
        if size:
            downloads += float(size[1]) * GB[size[2]]
        else:
            unknown.append(dataset)
    tuned = sum(study.is_trained(m) for d in study.datasets for m, _ in study.runs(d))
    return {
        f"archives (of {', '.join(unknown)} unknown)" if unknown else "archives": downloads,
        "unpacked images": downloads,
        "models of the hub": CAPTIONER_GB + CLIP_GB,
        f"{tuned} tuned models": TUNED_GB * tuned,
    }


def jobs() -> tuple[dict[str, int], float]:
    """The jobs of a dry run by rule, and how long it took in seconds."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--configfile", str(STUDY)]
    began = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    stats = (run.stdout + run.stderr).rpartition("Job stats:")[2].partition("total")[0]
    found = re.findall(r"^(\w+) +(\d+)$", stats, flags=re.MULTILINE)
    return {rule: int(n) for rule, n in found}, seconds


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    study = configuration()
    planned, seconds = jobs()
    print(f"{sum(planned.values())} jobs; the dry run took {seconds:.1f} s\n")
    print("| rule | jobs |\n|---|---:|")
    for rule, n in planned.items():
        print(f"| {rule} | {n} |")
    print("\n| GPU hours, on paper | A100 | H100 |\n|---|---:|---:|")
    columns = [hours(study, CARDS[name]) for name in ("A100", "H100")]
    for work in columns[0]:
        print(f"| {work} | " + " | ".join(f"{column[work]:.0f}" for column in columns) + " |")
    print("| all | " + " | ".join(f"{sum(column.values()):.0f}" for column in columns) + " |")
    print("\n| disk | GB |\n|---|---:|")
    for what, size in disk(study).items():
        print(f"| {what} | {size:.0f} |")
    print(f"| all | {sum(disk(study).values()):.0f} |")


if __name__ == "__main__":
    main()
