"""Settings as dataclasses, from the JSON strings that rules pass to commands."""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def from_values(cls: type[T], values: Mapping[str, Any], section: str = "") -> T:
    """Build a dataclass, and those that its annotations name, from a mapping.

    Raises:
        UserError: a key of the section is missing or unknown, or a value has another type.
    """
    return from_json(cls, json.dumps(values), section)


def from_json(cls: type[T], text: str, section: str = "") -> T:
    """Build a dataclass from a JSON object; see `from_values`."""
    return list_from_json(cls, f"[{text}]", section)[0]


def list_from_json(cls: type[T], text: str, section: str = "") -> list[T]:
    """Build a dataclass from each object of a JSON list; see `from_values`."""
    from pydantic import ValidationError  # here: --help does without

    try:
        built: list[T] = _adapter(cls).validate_json(text)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(filter(None, (section, *map(str, first["loc"][1:]))))
        raise UserError(
            f"Settings for {cls.__name__}{f', {key}' if key else ''}: {first['msg']}, not "
            f"{one_line(repr(first['input']))}."
        ) from None
    return built


@cache
def _adapter(cls: type[Any]) -> "TypeAdapter[list[Any]]":
    """Return the validator of a list: of a dataclass alone, pydantic takes no configuration."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(list[cls], config=config)  # type: ignore[valid-type]
