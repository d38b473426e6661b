"""Types of keys, and the validation of sections, whose errors are one sentence."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

import pydantic
from pydantic import Field, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from latteclip.config.removed import removed_key
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

KEY = "^[A-Za-z0-9_-]{1,100}$"
METHOD = "^[a-z0-9_]{1,100}$"
LINE = r"^[^\n]+$"
BELOW = r"^[^/\\.][^/\\]*(/[^/\\.][^/\\]*)*$"
FILE_NAME = "^[A-Za-z0-9][A-Za-z0-9._+-]*$"
DIGEST = "md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git_blob:[0-9a-f]{40}"
CHECKSUM = f"^({DIGEST})$"
CHECKSUM_OR_HUB = f"^(hub|{DIGEST})$"
SEEDS = "^[0-9]{1,9}(,[0-9]{1,9}){0,999}$"
WITH_PLACE = r"\{\}"
# What a value must do to match a pattern.
IN_WORDS = {
    KEY: "be at most 100 letters, digits, _ and -",
    METHOD: "be at most 100 lower-case letters, digits and _",
    LINE: "be one line",
    BELOW: "be a path inside a folder",
    FILE_NAME: "be the name of a file, of letters, digits and ._+-",
    CHECKSUM: "be md5:, sha256: or git_blob: and hexadecimal digits",
    CHECKSUM_OR_HUB: "be hub, or md5:, sha256: or git_blob: and hexadecimal digits",
    SEEDS: "be seeds, separated by commas",
    WITH_PLACE: "contain {}",
}
Key = Annotated[str, Field(pattern=KEY)]
MethodName = Annotated[str, Field(pattern=METHOD)]
Line = Annotated[str, Field(pattern=LINE)]  # a name or a path
Below = Annotated[str, Field(pattern=BELOW)]
FileName = Annotated[str, Field(pattern=FILE_NAME)]
Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[str], Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Pixels = Annotated[int, Field(ge=16)]
AboveZero = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(pydantic.BaseModel):
    """Keys with values."""

    model_config = pydantic.ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _parse_null(cls, value: Any, info: ValidationInfo) -> Any:
        """Parse null, which is a text in nested `--config`, and refuse booleans for numbers."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        types = set(_types(annotation))
        values = value if isinstance(value, list) else [value]
        if not types & {bool, Any} and any(isinstance(each, bool) for each in values):
            raise PydanticCustomError("boolean", "It should be no boolean")
        return None if value == "null" and type(None) in get_args(annotation) else value


def _types(annotation: Any) -> Iterator[Any]:
    """Yield a type and its parts."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


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
    where = f"Configuration key {one_line('.'.join(map(str, path)))}"
    given = one_line(repr(first["input"]), 120)
    if path == ["seeds"]:
        return f"seeds must be a number (3) or a list (0,1,2), not {given}."
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
