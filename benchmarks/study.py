"""What the study (config/study.yaml) takes: jobs, GPU hours and disk, as docs/scaling.md counts.

Nothing is timed but Snakemake's dry run: hours are counts of images over rates that are themselves
on paper (latteclip/config/estimate.py; `latteclip doctor --gpu` measures them on a machine).
"""

import argparse
import re
import subprocess
import sys
import time

import yaml

from latteclip.config import estimate, layers, shipped
from latteclip.config.configuration import Configuration

STUDY = shipped.CONFIG / "study.yaml"


def configuration() -> Configuration:
    """The configuration as the workflow merges it."""
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    return Configuration(layers.defaults(project=None), study)


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
    print(f"\n| GPU hours, on paper | {' | '.join(estimate.PEAKS)} |\n|---|---:|---:|")
    columns = [estimate.hours(study, estimate.on_paper(card)) for card in estimate.PEAKS]
    for work in columns[0]:
        print(f"| {work} | " + " | ".join(f"{column[work]:.0f}" for column in columns) + " |")
    print("| all | " + " | ".join(f"{sum(column.values()):.0f}" for column in columns) + " |")
    print("\n| disk | GB |\n|---|---:|")
    sizes = estimate.disk(study, estimate.Sizes())
    for what, size in sizes.items():
        print(f"| {what} | {size:.0f} |")
    print(f"| all | {sum(sizes.values()):.0f} |")


if __name__ == "__main__":
    main()
