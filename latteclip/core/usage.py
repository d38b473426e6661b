"""What commands of the workflow used: processor and GPU time, memory, tokens of the captioner.

Each process that runs one adds a line of JSON to a file beside its log. Snakemake, whose benchmark
files hold samples of the last run alone, knows nothing of that file and leaves it, whatever becomes
of the job; so what failed, was stopped or was repeated counts as well. Only a process that is
killed at once (SIGKILL, no memory left, a power cut) leaves no line.
"""

import contextlib
import json
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latteclip.core import gpus

log = logging.getLogger(__name__)
SUFFIX = ".used.jsonl"  # in place of a log's
TOKENS = ("tokens_read", "tokens_written")
_counted: Counter[str] = Counter()
_unwritten: list[Callable[[bool], None]] = []


@dataclass(frozen=True)
class Used:
    """What the runs of a stage used, all processes of all runs together."""

    runs: int
    seconds: float  # by the clock, of one run after another
    cpu_seconds: float  # of all cores, user and system
    gpu_seconds: float  # of all GPUs that were held for the stage, whether or not they had work
    memory: float  # MiB, resident, of the largest process at any time
    tokens_read: int  # by the captioner, of questions that it answered
    tokens_written: int

    def __add__(self, other: "Used") -> "Used":
        return Used(
            self.runs + other.runs,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            self.gpu_seconds + other.gpu_seconds,
            max(self.memory, other.memory),
            self.tokens_read + other.tokens_read,
            self.tokens_written + other.tokens_written,
        )


NOTHING = Used(0, 0.0, 0.0, 0.0, 0.0, 0, 0)


def count(name: str, number: int) -> None:
    """Add to what this process tells of itself: tokens_read or tokens_written."""
    _counted[name] += number


@contextlib.contextmanager
def recorded(stage: str, log_file: str | Path) -> Iterator[None]:
    """Add a line about this process to the file beside a log when the body ends, however it does.

    That it cannot be written is a warning, no error: the stage's work is done.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()

    def write(done: bool) -> None:
        line = {
            "stage": stage,
            "started": started,
            "done": done,
            "rank": int(os.environ.get("RANK", "0")),  # among the processes of torchrun
            "seconds": round(time.monotonic() - clock, 3),
            "gpu_seconds": round(gpus.seconds_held(), 3),
            **of_processes(),
            **{name: _counted[name] for name in TOKENS},
        }
        try:
            with Path(log_file).with_suffix(SUFFIX).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("What this run used was not written down (%s).", error.strerror)

    _unwritten.append(write)
    done = False
    try:
        yield
        done = True
    finally:
        write_down(done=done)


def write_down(*, done: bool) -> None:
    """Write the line of `recorded` now; also called where a process ends without unwinding."""
    while _unwritten:
        _unwritten.pop()(done)


def of_processes() -> dict[str, float]:
    """CPU seconds and peak MiB of this process, of its children that ended, and of those alive."""
    import psutil

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    memory = [_peak(), usages[1].ru_maxrss / 1024]
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            seconds += sum(child.cpu_times()[:4])  # user and system, own and of its children
            memory.append(child.memory_info().rss / 2**20)
    return {"cpu_seconds": round(seconds, 3), "memory": round(max(memory), 1)}


def _peak() -> float:
    """MiB of this process at most; ru_maxrss would count from before it became this program."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def by_stage(files: Iterable[Path]) -> dict[str, Used]:
    """What each stage used, in the order in which the stages first ran.

    Files that are not there, and lines that were not written whole, are passed over.
    """
    lines = [line for path in files if path.is_file() for line in _lines(path)]
    found: dict[str, Used] = {}
    for _, stage, used in sorted(lines, key=lambda line: line[0]):
        found[stage] = found.get(stage, NOTHING) + used
    return found


def _lines(path: Path) -> Iterator[tuple[str, str, Used]]:
    """When a stage started, which it was, and what it used; lines that lack one are passed over."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            yield str(line["started"]), str(line["stage"]), _used(line)


def _used(line: dict[str, Any]) -> Used:
    is_first = line["rank"] == 0
    return Used(
        runs=int(is_first),
        seconds=float(line["seconds"]) if is_first else 0.0,
        cpu_seconds=float(line["cpu_seconds"]),
        gpu_seconds=float(line["gpu_seconds"]),
        memory=float(line["memory"]),
        **{name: int(line[name]) for name in TOKENS},
    )


def total(stages: Iterable[Used]) -> Used:
    """The sum."""
    return sum(stages, NOTHING)
