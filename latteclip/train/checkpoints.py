"""Checkpoints of a training: whole folders of safetensors and JSON, the newest two of them."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from latteclip.core.errors import UserError
from latteclip.core.files import replacing

log = logging.getLogger(__name__)
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after so many steps, of all epochs so far."""

    steps: int
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]  # whatever JSON holds exactly


def save(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint, whole or not at all, and remove all but the newest `KEPT`."""
    with replacing(Path(folder) / f"step-{checkpoint.steps:08d}") as temporary:
        temporary.mkdir()
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
        }
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(checkpoint.values), encoding="utf-8")
    half_written = Path(folder).glob(".step-*.tmp")  # by runs that were killed
    for old in (*_newest_first(folder)[KEPT:], *half_written):
        shutil.rmtree(old)


def latest(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; each that cannot is named in a warning."""
    for path in _newest_first(folder):
        try:
            return Checkpoint(
                int(path.name.removeprefix("step-")),
                load_file(path / "state.safetensors"),
                json.loads((path / "state.json").read_text(encoding="utf-8")),
            )
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("Checkpoint %s cannot be read (%s); taking the one before.", path, error)
    return None


def refuse_others(wanted: dict[str, Any], checkpoint: Checkpoint, folder: str | Path) -> None:
    """Raise UserError naming the first setting in which the checkpoint's `identity` differs."""
    saved = _flat(checkpoint.values["identity"])
    for key, value in _flat(wanted).items():
        if key not in saved:
            raise UserError(
                f"{folder} holds a checkpoint of another version of this program, which did not "
                f"know {key}; delete that folder to start anew."
            )
        if saved[key] != value:
            raise UserError(
                f"{folder} holds a checkpoint of an unfinished training whose {key} is "
                f"{saved.get(key)!r}, not {value!r}; delete that folder to start anew, or restore "
                f"{key} to go on."
            )


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
