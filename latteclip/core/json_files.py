"""The JSON files that stages leave: read back and checked."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latteclip.core.errors import DELETE_AND_RERUN, UserError

LARGEST = 2**27  # bytes; of what is written here only the history of a training comes near


def read_object(path: str | Path, keys: Iterable[str], remedy: str | None = None) -> dict[str, Any]:
    """An object that holds the keys, and perhaps more.

    Args:
        path: of the file.
        keys: that it must have.
        remedy: what to do about a bad file, for the message; None: make it again.

    Raises:
        UserError: the file is missing, is not a JSON object, or lacks a key.
    """
    remedy = remedy or DELETE_AND_RERUN
    values = _parsed(Path(path), remedy)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}.")
    lacking = [key for key in keys if key not in values]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; {remedy}.")
    return values


def _parsed(path: Path, remedy: str) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; {remedy}.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST} bytes; {remedy}.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}.") from None
