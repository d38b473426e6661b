"""The JSON files that stages leave: read back and checked."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError


def read_object(path: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """An object that holds the keys, and perhaps more.

    Raises:
        UserError: the file is missing, is not a JSON object, or lacks a key.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except ValueError as error:  # also of bytes that are not UTF-8
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it and rerun its stage."
        ) from None
    lacking = [key for key in keys if not isinstance(values, dict) or key not in values]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; delete it and rerun its stage.")
    return dict(values)
