"""The JSON files that stages leave, read back and checked."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError

FIGURES = ("acc1", "acc5", "mean_per_class_recall")
METRICS = ("dataset", "method", "seed", "images", *FIGURES, "per_class")


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


def read_metrics(path: str | Path) -> dict[str, Any]:
    """The metrics.json of a run; `marks` is empty where the file has none.

    Raises:
        UserError: as of `read_object`, or a figure is not a number.
    """
    values = {"marks": [], **read_object(path, METRICS)}
    for name in FIGURES:
        if not isinstance(values[name], int | float | None):
            raise UserError(
                f"{path}: {name} is {values[name]!r}, not a number; delete the file and rerun its "
                "stage."
            )
    return values
