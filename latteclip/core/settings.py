"""Typed settings from the JSON strings that rules hand to commands."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from latteclip.core.errors import UserError, suggestion
from latteclip.core.plain_values import refuse_unfit
from latteclip.core.terminal import one_line

T = TypeVar("T")
# What JSON calls the values that annotations stand for.
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


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
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{what} are not valid JSON ({one_line(error)}): {one_line(text)}."
        ) from None
    refuse_unfit(values, what)
    return values


def from_values(cls: type[T], values: Mapping[str, Any], section: str = "") -> T:
    """Build the dataclass `cls` from a mapping, and those that its annotations name inside it.

    Args:
        cls: its fields are the known keys; their annotations are what JSON can hold.
        values: by key.
        section: where the keys belong, for messages.

    Raises:
        UserError: a key is missing or unknown, or a value is of another type than its field.
    """
    return _built(cls, values, _Place(cls.__name__, section))


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a value stands, for messages."""

    settings: str  # the class that is built
    key: str  # with dots; empty for the whole

    def inside(self, key: str) -> "_Place":
        return _Place(self.settings, f"{self.key}.{key}" if self.key else key)


def _built(cls: type[T], values: Mapping[str, Any], place: _Place) -> T:
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(
                f"Settings for {place.settings} do not know {place.inside(key).key!r}; "
                f"{suggestion(key, fields)}"
            )
    missing = sorted(set(_required(fields.values())) - set(values))
    if missing:
        keys = [place.inside(key).key for key in missing]
        raise UserError(f"Settings for {place.settings} lack the keys {keys}.")
    kinds = get_type_hints(cls)
    return cls(
        **{key: _checked(kinds[key], value, place.inside(key)) for key, value in values.items()}
    )


def _required(fields: Any) -> Iterator[str]:
    """Names of the fields that have no default."""
    for field in fields:
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield field.name


def _checked(kind: Any, value: Any, place: _Place) -> Any:
    """The value as the annotation `kind` wants it."""
    chosen = next((option for option in _options(kind) if _fits(option, value)), None)
    if chosen is None:
        wanted = " or ".join(_word(option) for option in _options(kind))
        raise UserError(
            f"Settings for {place.settings}: {place.key} must be {wanted}, not "
            f"{one_line(repr(value))}."
        )
    if isinstance(chosen, type) and dataclasses.is_dataclass(chosen):
        return _built(chosen, value, place)
    inner = get_args(chosen)
    if get_origin(chosen) is list:
        return [_checked(inner[0], item, place.inside(str(n))) for n, item in enumerate(value)]
    if get_origin(chosen) is dict:
        return {key: _checked(inner[1], item, place.inside(key)) for key, item in value.items()}
    return value


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union; anything else is its own only one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(kind: Any, value: Any) -> bool:
    """Whether the value is of the annotation's outermost type."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    return isinstance(value, (int, float) if kind is float else _outermost(kind))


def _outermost(kind: Any) -> type:
    """The Python type that JSON gives for the annotation."""
    return dict if dataclasses.is_dataclass(kind) else get_origin(kind) or kind


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return WORDS[_outermost(kind)]
