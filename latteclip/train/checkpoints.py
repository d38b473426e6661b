"""Checkpoints of a training: whole folders of safetensors and JSON, the newest two of them.

Each has the SHA-256 sums of its files.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from latteclip.core import hashing
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import read_object, replacing

log = logging.getLogger(__name__)
KEPT = 2
clock = time.monotonic


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after so many steps, of all epochs so far."""

    steps: int
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]  # whatever JSON holds exactly


class Timer:
    """Says when the next checkpoint is due."""

    def __init__(self, minutes: float) -> None:
        """Start the clock; a checkpoint is due after so many minutes."""
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Start the clock again, after a checkpoint was written."""
        self._started = clock()

    def is_due(self) -> bool:
        """Return whether the time is over."""
        return clock() - self._started >= self._seconds


def save(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint, whole or not at all, and remove all but the newest `KEPT`."""
    with replacing(Path(folder) / f"step-{checkpoint.steps:08d}", anew=True) as temporary:
        temporary.mkdir()
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
        }
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(checkpoint.values), encoding="utf-8")
        hashing.write_sums(temporary)
    half_written = Path(folder).glob(".step-*.tmp")  # by runs that were killed
    for old in (*_newest_first(folder)[KEPT:], *half_written):
        shutil.rmtree(old)


def latest(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; each that is not is named in a warning."""
    for path in _newest_first(folder):
        try:
            return _read(path)
        except (SafetensorError, OSError, ValueError, UserError) as error:
            reason = str(error).rstrip(".")
            log.warning("Checkpoint %s cannot be read (%s); taking the one before.", path, reason)
    return None


def _read(path: Path) -> Checkpoint:
    """A checkpoint, where its files are those that were written."""
    hashing.verify_sums(path, "it is left out")
    values = read_object(path / "state.json", ["identity"], "it is left out")
    if not isinstance(values["identity"], dict):
        raise ValueError("its identity is not a JSON object")
    return Checkpoint(
        int(path.name.removeprefix("step-")), load_file(path / "state.safetensors"), values
    )


@contextlib.contextmanager
def fitting(folder: str | Path) -> Iterator[None]:
    """Whatever a checkpoint lacks or has too much for its training, as one sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds a checkpoint that does not fit this training ({first_line(error)}); "
            "delete that folder to start anew."
        ) from error


def difference(wanted: dict[str, Any], checkpoint: Checkpoint) -> str | None:
    """Return the first setting in which the checkpoint's `identity` differs, in words."""
    saved = _flat(checkpoint.values["identity"])
    for key, value in _flat(wanted).items():
        if key not in saved:
            return f"another version of this program, which did not know {key}"
        if saved[key] != value:
            return f"{key} {saved[key]!r}, not {value!r}"
    return None


def set_aside(folder: str | Path, why: str) -> None:
    """Rename the folder of another training's checkpoints; an older one of that name goes."""
    aside = aside_of(folder)
    shutil.rmtree(aside, ignore_errors=True)
    Path(folder).rename(aside)
    log.warning(
        "The checkpoint of an unfinished training is of %s: it is set aside in %s until this "
        "training, which starts anew, is finished.",
        why,
        aside,
    )


def aside_of(folder: str | Path) -> Path:
    """Return where checkpoints of other settings are kept."""
    return Path(f"{folder}-before")


def remove(folder: str | Path) -> None:
    """Remove the checkpoints of a training that is finished, and those that were set aside."""
    for path in (Path(folder), aside_of(folder)):
        shutil.rmtree(path, ignore_errors=True)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, as JSON would give them back."""
    result: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _newest_first(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("step-*"), reverse=True)
