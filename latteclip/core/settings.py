"""Typed settings from the JSON strings that rules hand to commands."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from latteclip.core.errors import UserError

T = TypeVar("T")


def from_json(cls: type[T], text: str) -> T:
    """Build the dataclass `cls` from a JSON object.

    Raises:
        UserError: the text is no JSON object, or a key is missing or unknown.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"Settings for {cls.__name__} are not JSON ({error}): {text!r}.") from None
    if not isinstance(values, dict):
        raise UserError(f"Settings for {cls.__name__} must be a JSON object, not {text!r}.")
    return from_values(cls, values)


def from_values(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the dataclass `cls` from a mapping.

    Raises:
        UserError: a key is missing or unknown.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(
            f"Settings for {cls.__name__} do not know {unknown}; known keys: {sorted(fields)}."
        )
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if missing:
        raise UserError(f"Settings for {cls.__name__} lack the keys {missing}.")
    return cls(**values)
