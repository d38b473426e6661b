"""Validate keys, and say in one sentence which is wrong."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

import pydantic
from pydantic_core import ErrorDetails

from latteclip.config.keys import IN_WORDS, Section
from latteclip.config.removed import removed_key
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

Kind = TypeVar("Kind", bound=Section)
SEEDS = "a number (3) or a list (0,1,2)"


def validate(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Return a section with values of the right types.

    UserError: the first mistake; names the key and, for an unknown key, the nearest one.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(_sentence(kind, error.errors(), values)) from None


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a key's type has, in a list or mapping too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence on an unknown name, with the nearest known one or all of them."""
    return f"{what} is unknown; {suggestion(name, known)}"


def _sentence(kind: type[Section], errors: list[ErrorDetails], values: Any) -> str:
    """Return the sentence on the first error, or on an unknown key, which may be misspelt."""
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    path = list(_keys(first["loc"], values))
    where = f"Configuration key {one_line('.'.join(map(str, path)))}"
    given = one_line(repr(first["input"]), 120)
    if path == ["seeds"]:
        return f"seeds must be {SEEDS}, not {given}."
    field = None
    section: type[Section] | None = kind
    for part in path:
        field = section.model_fields.get(str(part)) if section else None
        section = section_of(field.annotation) if field else section
    if first["type"] == "extra_forbidden" and section:
        if step := removed_key(list(map(str, path))):
            return f"{where} was removed: {step}"
        return unknown(where, str(path[-1]), section.model_fields)
    if field and field.description:
        described = " ".join(field.description.partition(";")[0].split())
        where = f"{where} ({described})"
    wanted: dict[str, None] = {}
    for error in errors:
        if list(_keys(error["loc"], values)) == path:
            message = error["msg"]
            words = IN_WORDS.get(error.get("ctx", {}).get("pattern", ""))
            wanted[words or message.partition(" should ")[2] or message] = None
    if field and type(None) in get_args(field.annotation):
        wanted["be null"] = None
    alternatives = " or ".join(wanted)
    return f"{where} must {alternatives.replace(' or be ', ' or ')}, not {given}."


def _keys(location: tuple[int | str, ...], values: Any) -> Iterator[int | str]:
    """Yield the keys and indices of a location, without pydantic's names of the types it tried."""
    for part in location:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            yield part
            values = values[part]
