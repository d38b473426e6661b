"""What sections are made of: a key has its type, its default and its description in one place.

`make docs` writes config/config.yaml, docs/schema.json and the tables of docs/configuration.md
from the sections. A stage takes the sections that it reads as its arguments.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field, ValidationInfo
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]  # the program finds the number
AUTO: Auto = "auto"
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(ge=16)]
AboveZero = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
Line = Annotated[str, Field(pattern=r"^[^\n]+$")]  # a name or a path
Text = Annotated[str, Field(min_length=1)]


def key(default: Any, description: str) -> Any:
    """Return a key that config.yaml has, with its default."""
    return Field(default=default, description=description)


def optional_key(description: str, default: Any = None) -> Any:
    """Return a key that config.yaml leaves out; without it, a stage takes the default."""
    return Field(default=default, description=description, json_schema_extra=_drop_null)


def is_in_file(field: Any) -> bool:
    """Return whether config.yaml has a key."""
    return field.json_schema_extra is not _drop_null


def _drop_null(schema: dict[str, Any]) -> None:
    """Remove the default null of a key that is absent by default from its schema."""
    if schema.get("default", "") is None:
        del schema["default"]


class Section(pydantic.BaseModel):
    """Keys with values."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _parse_null(cls, value: Any, info: ValidationInfo) -> Any:
        """Parse null, which is a text in nested `--config`. Numbers pydantic parses itself.

        It would take a boolean for one, too.
        """
        annotation = cls.model_fields[str(info.field_name)].annotation
        types = set(_types(annotation))
        values = value if isinstance(value, list) else [value]
        if not types & {bool, Any} and any(isinstance(each, bool) for each in values):
            raise PydanticCustomError("boolean", "It should be no boolean")
        return None if value == "null" and type(None) in get_args(annotation) else value


def inner(section: type[Section], description: str = "") -> Any:
    """Return a key that is a section, described by the first line of its documentation."""
    described = (section.__doc__ or "").partition("\n")[0].removesuffix(".")
    if described[1:2].islower():  # no abbreviation
        described = described[0].lower() + described[1:]
    return Field(default_factory=section, description=description or described)


def narrowed(section: type[Section], name: str) -> Any:
    """Return a key of a section again, with its default and description, for a narrower type."""
    field = section.model_fields[name]
    extra = field.json_schema_extra
    return Field(
        default=field.default, description=field.description, json_schema_extra=extra
    )


def _types(annotation: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)
