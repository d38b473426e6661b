"""Time the demo from its textures to its table, stage by stage, and what of it goes into imports.

Each run is a clone of its own in a temporary folder. With --before, the demo of an older commit and
of this one take turns, so that a busy machine slows both.

    python benchmarks/demo.py [--before COMMIT] [--rounds 3] [--jobs 2]

Imports are timed by Python itself (PYTHONPROFILEIMPORTTIME), in one more run, which that slows down
a little: the time that modules take by themselves, over all processes, beside that of all jobs.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
[METHODS] = re.findall(r"^DEMO_METHODS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
HERE = "HEAD"
STARTED = re.compile(r"^ +jobid: (\d+)$")
FINISHED = re.compile(r"^Finished jobid: (\d+) \(Rule: (\w+)\)$")
TIME = re.compile(r"^\[(\w+ \w+ +\d+ [\d:]+ \d+)\]$")
IMPORT = re.compile(r"import time: +(\d+) \|")


def run(commit: str, jobs: int, **environment: str) -> tuple[Path, str]:
    """The folder of a finished demo, and what its jobs said."""
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True)
    command = ["snakemake", f"-j{jobs}", "--config", "dataset=demo", f"method={METHODS}"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    told = {**os.environ, "PATH": path, **environment}
    done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, check=True)
    return folder, done.stderr


def stages(folder: Path) -> dict[str, list[float]]:
    """Seconds from the start to the end of each job, by rule; under "" those of the whole run."""
    (log,) = folder.glob(".snakemake/log/*.log")
    now = datetime.min
    started: dict[str, datetime] = {}
    found: defaultdict[str, list[float]] = defaultdict(list)
    for line in log.read_text().splitlines():
        if time := TIME.match(line):
            now = datetime.strptime(time[1], "%a %b %d %H:%M:%S %Y")
        elif job := STARTED.match(line):
            started[job[1]] = now
        elif job := FINISHED.match(line):
            found[job[2]].append((now - started[job[1]]).total_seconds())
    found[""] = [(now - min(started.values())).total_seconds()]
    return found


def imports(commit: str, jobs: int) -> float:
    """The share of imports in the seconds of all jobs of a run."""
    folder, said = run(commit, jobs, PYTHONPROFILEIMPORTTIME="1")
    seconds = sum(sum(durations) for rule, durations in stages(folder).items() if rule)
    return sum(map(int, IMPORT.findall(said))) / 1e6 / seconds


def main() -> None:
    """Print a table of the stages, and the whole by the clock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", help="a commit to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    commits = [*filter(None, [args.before]), HERE]
    rounds = [
        {commit: stages(run(commit, args.jobs)[0]) for commit in commits}
        for _ in range(args.rounds)
    ]
    print("| seconds | jobs | " + " | ".join(commits) + " |")
    print("|---|---:|" + "---:|" * len(commits))
    for rule, durations in rounds[0][HERE].items():
        sums = [[sum(found[commit][rule]) for found in rounds] for commit in commits]
        cells = [f"{statistics.median(s):.0f} ({min(s):.0f} to {max(s):.0f})" for s in sums]
        print(f"| {rule or 'by the clock'} | {len(durations)} | " + " | ".join(cells) + " |")
    shares = [imports(commit, args.jobs) for commit in commits]
    print("| imports, of all jobs |  | " + " | ".join(f"{100 * s:.0f} %" for s in shares) + " |")


if __name__ == "__main__":
    main()
