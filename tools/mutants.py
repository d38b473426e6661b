"""Plant small faults one at a time, run tests on each, and write those that no test notices.

`make mutants` runs it in an environment of its own, with cosmic-ray, which makes the faults. Each
place that is drawn at random gets one of the faults that cosmic-ray has for it.
"""

import argparse
import os
import random
import shutil
import subprocess
import tempfile
import tomllib
from collections import Counter, defaultdict
from multiprocessing import Pool
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / ".mutants" / "survivors.diff"
# By module: lines as a fault leaves them, which mean the same, each with the reason.
EQUAL = ROOT / "tools" / "equal_mutants.toml"
TESTS = {  # by the code that they watch
    "latteclip/train": "tests/train tests/evaluate tests/project/test_docs.py",
    "latteclip/labels": "tests/labels tests/audit",
    "latteclip/evaluate": "tests/evaluate tests/deploy/test_predict.py",
    "latteclip/clip/classifier.py": "tests/clip tests/evaluate tests/labels",
    "latteclip/config/jobs.py": "tests/config",
}
PYTEST = "python -m pytest -q -x -p no:cacheprovider -m 'not slow'"
TIMEOUT = 600  # seconds: some faults never end
# Unions of types, which would not import.
WITHOUT = "core/ReplaceBinaryOperator_BitOr_"


def places() -> list[list[MutationSpec]]:
    """Return the faults of each place, in the order of the code."""
    paths = [
        path
        for name in map(Path, TESTS)
        for path in ([name] if name.suffix else name.rglob("*.py"))
    ]
    found = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as folder,
        use_db(f"{folder}/faults.sqlite") as database,
    ):
        init(sorted(paths), database, {})
        for item in database.work_items:
            [fault] = item.mutations
            if not fault.operator_name.startswith(WITHOUT):
                found[str(fault.module_path), fault.start_pos].append(fault)
    return [sorted(found[place], key=str) for place in sorted(found)]


def work_in_copy() -> None:
    """Copy the files that git knows to a new folder, and change to it."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], text=True)
    folder = Path(tempfile.mkdtemp(prefix="copy-", dir=OUTPUT.parent))
    for name in filter(os.path.exists, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, folder / name)
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def unseen(fault: MutationSpec) -> str:
    """Return the difference that a fault makes, "" if a test notices it."""
    module = str(fault.module_path)
    [tests] = [tests for name, tests in TESTS.items() if module.startswith(name)]
    result = mutate_and_test([fault], f"{PYTEST} {tests}", TIMEOUT)
    return str(result.diff) if result.test_outcome == TestOutcome.SURVIVED else ""


def is_equal(diff: str) -> bool:
    """Return whether a difference is listed as one that changes nothing."""
    listed = tomllib.loads(EQUAL.read_text("utf-8"))
    lines = diff.splitlines()
    added = {line[1:].strip() for line in lines if line.startswith("+")}
    return any(
        f"--- a/{module}" in lines and added & {*known}
        for module, known in listed.items()
    )


def main() -> None:
    """Draw faults, plant them by several processes, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="number of places")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.chdir(ROOT)
    OUTPUT.parent.mkdir(exist_ok=True)
    rng = random.Random(args.seed)
    every = places()
    sample = rng.sample(every, min(args.sample, len(every)))
    faults = [rng.choice(place) for place in sample]
    counts = Counter[str]()
    with (
        OUTPUT.open("w", encoding="utf-8") as file,
        Pool(args.jobs, work_in_copy) as pool,
    ):
        for diff in pool.imap_unordered(unseen, faults):
            if not diff:
                counts["noticed"] += 1
            elif is_equal(diff):
                counts["equal"] += 1
            else:
                counts["unseen"] += 1
                print(diff, end="\n\n", file=file, flush=True)
            print(f"{counts.total()} of {len(faults)}: {dict(counts)}", flush=True)
    for folder in OUTPUT.parent.glob("copy-*"):
        shutil.rmtree(folder)
    print(f"{OUTPUT} has the faults that no test noticed.")


if __name__ == "__main__":
    main()
