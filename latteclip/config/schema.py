"""The base class of sections, and their validation, whose errors are one sentence."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

import pydantic
from pydantic import ValidationInfo
from pydantic_core import ErrorDetails

from latteclip.config.removed import removed_key
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

NAME = "^[A-Za-z0-9_-]{1,100}$"
CHECKSUM = "^(hub|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git_blob:[0-9a-f]{40})$"
WITH_PLACE = r"\{\}"
# What a value must do to match a pattern.
IN_WORDS = {
    NAME: "be at most 100 letters, digits, _ and -",
    CHECKSUM: "be md5:, sha256: or git_blob: and hexadecimal digits",
    WITH_PLACE: "contain {}",
}


class Section(pydantic.BaseModel):
    """Keys with values."""

    model_config = pydantic.ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _parse_null(cls, value: Any, info: ValidationInfo) -> Any:
        """Parse null, which Snakemake passes as a text where it is nested in `--config`."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        return None if value == "null" and type(None) in get_args(annotation) else value


Kind = TypeVar("Kind", bound=Section)


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
    where = f"Configuration key {one_line('.'.join(path))}"
    field = None
    section: type[Section] | None = kind
    for part in path:
        field = section.model_fields.get(part) if section else None
        section = section_of(field.annotation) if field else section
    if first["type"] == "extra_forbidden" and section:
        if step := removed_key(path):
            return f"{where} was removed: {step}"
        return unknown(where, path[-1], section.model_fields)
    if field and field.description:
        where += f" ({' '.join(field.description.partition(';')[0].split())})"
    same = (each for each in errors if list(_keys(each["loc"], values)) == path)
    wanted = " or ".join(dict.fromkeys(map(_wanted, same)))
    if field and type(None) in get_args(field.annotation):
        wanted += " or be null"
    return f"{where} must {wanted}, not {one_line(repr(first['input']), 120)}."


def _wanted(error: ErrorDetails) -> str:
    """Return what a value must do, as the end of a sentence."""
    if error["type"] == "missing":
        return f"have the key {error['loc'][-1]}"
    pattern = error.get("ctx", {}).get("pattern", "")
    return IN_WORDS.get(pattern) or error["msg"].partition(" should ")[2] or error["msg"]


def _keys(location: tuple[int | str, ...], values: Any) -> Iterator[str]:
    """Yield the keys and indices of a location, without pydantic's names of the types it tried."""
    for part in location:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            yield str(part)
            values = values[part]
