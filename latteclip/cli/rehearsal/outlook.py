"""From what a rehearsal measured to hours and disk of what is configured."""

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from latteclip.cli.doctor import Finding
from latteclip.cli.rehearsal.job import Job
from latteclip.config import estimate
from latteclip.config.configuration import Configuration

GB = 1e9
Measured = Mapping[str, Mapping[str, Any]]  # by part; one that failed is not there


def outlook(configuration: Configuration, job: Job, measured: Measured) -> Iterator[Finding]:
    """Hours and disk.

    Args:
        configuration: what is estimated.
        job: what was rehearsed; where it stands in for another, the figures are those on paper.
        measured: by its parts.
    """
    unknown = estimate.uncounted(configuration)
    if unknown:
        yield Finding(
            "note",
            f"nobody knows yet how many images {', '.join(unknown)} have",
            f"index them first: latteclip workflow -j1 {estimate.INDEX.format(dataset=unknown[0])}",
        )
    if len(unknown) < len(configuration.datasets):
        yield from (
            _on_paper(configuration) if job.stands_in else _hours(configuration, job, measured)
        )
    yield _disk(configuration, estimate.Sizes() if job.stands_in else _sizes(measured))


def _on_paper(configuration: Configuration) -> Iterator[Finding]:
    for card in estimate.PEAKS:
        hours = estimate.hours(configuration, estimate.on_paper(card))
        yield Finding("ok", f"{_names(configuration)} on one {card}, on paper: {_listed(hours)}")


def _hours(configuration: Configuration, job: Job, measured: Measured) -> Iterator[Finding]:
    hours = estimate.hours(configuration, _rates(measured))
    machine = "GPU" if job.device == "cuda" else "machine without a GPU"
    if hours:
        yield Finding("ok", f"{_names(configuration)} on one such {machine}: {_listed(hours)}")
    paper = estimate.hours(configuration, estimate.on_paper("H100"))
    missing = [work for work, some in paper.items() if some and work not in hours]
    if missing:
        yield Finding("note", f"not measured, so without hours: {', '.join(missing)}")


def _rates(measured: Measured) -> estimate.Rates:
    """A start is that of the part, as it was, and on paper where it was not seen."""
    captioner, training = measured.get("captioner", {}), measured.get("training", {})
    samples = training.get("rate")
    paper = estimate.Rates(None, None, None, None)
    return estimate.Rates(
        captions=captioner.get("rate"),
        samples=samples,
        images=estimate.encoded(samples) if samples else None,
        fed=measured.get("loader", {}).get("rate"),
        engine_start=captioner.get("start", paper.engine_start),
        job_start=training["taken"] - training["steps"] if training else paper.job_start,
    )


def _sizes(measured: Measured) -> estimate.Sizes:
    """Those that were seen, and on paper where they were not; a folder's model takes no more."""
    clip = measured.get("training") or measured.get("loader") or {}
    captioner = measured.get("captioner", {})
    paper = estimate.Sizes()
    return estimate.Sizes(
        captioner=(captioner["held"] or 0) / GB if captioner else paper.captioner,
        clip=(clip["held"] or 0) / GB if clip else paper.clip,
        tuned=clip["written"] / GB if "written" in clip else paper.tuned,
    )


def _disk(configuration: Configuration, sizes: estimate.Sizes) -> Finding:
    parts = estimate.disk(configuration, sizes)
    wanted, free = sum(parts.values()), shutil.disk_usage(".").free / GB
    listed = ", ".join(f"{what} {size:.2g}" for what, size in parts.items() if size)
    text = (
        f"disk of {_names(configuration)}: {wanted:.2g} GB in all ({listed}); {free:.0f} GB are "
        "free here"
    )
    if wanted > free:
        return Finding("note", text, "free some, or run fewer methods and seeds at a time")
    return Finding("ok", text)


def _names(configuration: Configuration) -> str:
    return ", ".join(configuration.datasets)


def _listed(hours: dict[str, float]) -> str:
    """Hours in all and of each kind."""
    each = ", ".join(f"{work} {_time(n)}" for work, n in hours.items() if n)
    return f"{_time(sum(hours.values()))} ({each})"


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
