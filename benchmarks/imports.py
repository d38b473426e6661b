"""Count the CPU time of importing open_clip: as it comes, by the package, and in its command.

The ways take turns, so that a busy machine slows all of them. Each is a new interpreter, and user
and system time are added.

    python benchmarks/imports.py [--rounds 5]
"""

import argparse
import resource
import statistics
import subprocess
import sys

WAYS = {
    "torch alone": "import torch",
    "import open_clip": "import open_clip",
    "as the package imports it": "from latteclip.core.open_clip_import import open_clip",
    "in a command": """
import sys
from latteclip import __main__ as command
def main():
    from latteclip.core.open_clip_import import open_clip
    return 0
command.main = main
sys.exit(command.process())
""",
}


def cpu_seconds(code: str) -> float:
    """Return user and system time of a new interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print medians and ranges, and the ratios of the plain import to ours in each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, code in WAYS.items():
            times[name].append(cpu_seconds(code))
    for name, found in times.items():
        print(
            f"{name}: {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})"
        )
    _, plain, *ours = times
    for name in ours:
        pairs = zip(times[plain], times[name], strict=True)
        ratios = sorted(before / after for before, after in pairs)
        middle = statistics.median(ratios)
        print(f"{plain} / {name}: {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
