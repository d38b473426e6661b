"""Settings as dataclasses, from the JSON strings that rules pass to commands."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")


def from_json(cls: type[T], text: str) -> T:
    """Build the dataclass `cls` from a JSON object; see `from_values`.

    Raises:
        UserError: the text is not a JSON object, or its values do not fit.
    """
    values = _parsed(text, f"Settings for {cls.__name__}")
    if not isinstance(values, dict):
        raise UserError(f"Settings for {cls.__name__} must be a JSON object, not {one_line(text)}.")
    return from_values(cls, values)


def list_from_json(cls: type[T], text: str, name: str) -> list[T]:
    """Build one dataclass `cls` from each object of a JSON list, which has at least one.

    Args:
        cls: as of `from_values`.
        text: the list.
        name: what the objects are called in messages, in the plural.

    Raises:
        UserError: the text is not such a list, or the values of an object do not fit.
    """
    values = _parsed(text, f"The {name}")
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UserError(f"The {name} must be a JSON list of objects, not {one_line(text)}.")
    if not values:
        raise UserError(f"The {name} are an empty list; there must be at least one.")
    return [from_values(cls, value) for value in values]


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{what} are not valid JSON ({one_line(error)}): {one_line(text)}."
        ) from None


def from_values(cls: type[T], values: Mapping[str, Any], section: str = "") -> T:
    """Build the dataclass `cls` from a mapping, and those that its annotations name inside it.

    Args:
        cls: its fields are the known keys; their annotations are what JSON can hold.
        values: by key.
        section: where the keys belong, for messages.

    Raises:
        UserError: a key is missing or unknown, or a value is of another type than its field.
    """
    from pydantic import ValidationError  # here: --help does without

    try:
        built: list[T] = _adapter(cls).validate_json(json.dumps([values]))  # type: ignore[arg-type]
    except ValidationError as error:
        raise UserError(_sentence(cls, values, section, error.errors())) from None
    return built[0]


@cache
def _adapter(cls: type[Any]) -> "TypeAdapter[list[Any]]":
    """Return the validator of a list: of a dataclass alone, pydantic takes no configuration."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(list[cls], config=config)  # type: ignore[valid-type]


def _sentence(
    cls: type, values: Mapping[str, Any], section: str, errors: "Sequence[ErrorDetails]"
) -> str:
    """Return the sentence on the first error, or on an unknown key, which may be misspelt."""
    error = min(errors, key=lambda each: each["type"] != "unexpected_keyword_argument")
    keys = list(error_keys(error["loc"][1:], values))
    key = ".".join(map(str, filter(None, (section, *keys))))
    what = f"Settings for {cls.__name__}"
    if error["type"] == "unexpected_keyword_argument":
        known = [field.name for field in fields(_dataclass_at(cls, keys[:-1]))]
        return f"{what} do not know {key!r}; {suggestion(str(keys[-1]), known)}"
    if error["type"] == "missing":
        return f"{what} lack the key {f'{key}.' if key else ''}{error['loc'][-1]}."
    same = [each for each in errors if list(error_keys(each["loc"][1:], values)) == keys]
    wanted = dict.fromkeys(each["msg"].partition(" should be ")[2] for each in same)
    return f"{what}: {key} must be {' or '.join(wanted)}, not {one_line(repr(error['input']))}."


def error_keys(location: tuple[int | str, ...], values: Any) -> Iterator[int | str]:
    """Yield the keys and indices of a location, without pydantic's names of the types it tried."""
    for part in location:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            yield part
            values = values[part]


def _dataclass_at(cls: type, keys: Sequence[int | str]) -> type:
    """Return the dataclass that the annotations name for the values at some keys."""
    for key in keys:
        cls = _dataclass_in(get_type_hints(cls).get(str(key))) or cls
    return cls


def _dataclass_in(annotation: Any) -> type | None:
    if isinstance(annotation, type) and is_dataclass(annotation):
        return annotation
    return next(filter(None, map(_dataclass_in, get_args(annotation))), None)
