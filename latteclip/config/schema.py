"""The JSON Schema of the configuration: types, typos, and one sentence about the first mistake.

`format` in it is one of FORMATS.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema

from latteclip.config import layers
from latteclip.core.errors import UserError, suggestion
from latteclip.core.plain_values import refuse_unfit
from latteclip.core.steps import AUTO
from latteclip.core.terminal import one_line

Config = Mapping[str, Any]
SCHEMA = layers.ROOT / "workflow" / "schemas" / "config.schema.yaml"
LONGEST_NAME, LONGEST_PART, LONGEST_PATH = 200, 255, 4095  # bytes
FORMATS = {
    "line": f"a text on one line, of at most {LONGEST_PATH} bytes",
    "name": f"a name on one line, of at most {LONGEST_NAME} bytes",
    "path": f"a path on one line, of at most {LONGEST_PATH} bytes, {LONGEST_PART} in each part",
}
TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "keys with values",
    "string": "a text",
}
# JSON Schema takes 3.0 for an integer, but seeds and sizes are counted with Python's.
Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def is_line(value: object, longest: int = LONGEST_PATH) -> bool:
    """Whether a text has one line, and bytes, but not too many; other values have no format."""
    if not isinstance(value, str):
        return True
    return "\n" not in value and 0 < len(os.fsencode(value)) <= longest


def is_name(value: object) -> bool:
    """Whether files may be named after it."""
    return is_line(value, LONGEST_NAME)


def is_path(value: object) -> bool:
    """Whether the system takes it for a path."""
    parts = value.split("/") if isinstance(value, str) else []
    return is_line(value) and max(map(len, map(os.fsencode, parts)), default=0) <= LONGEST_PART


WORD = f"^{AUTO}$"  # pattern of a key whose number may be left to the program
checker = jsonschema.FormatChecker(formats=())
for name, fits in (("line", is_line), ("name", is_name), ("path", is_path)):
    checker.checks(name)(fits)


class Schema:
    """A JSON Schema with `$defs`, as YAML."""

    def __init__(self, path: str | Path) -> None:
        self.root = layers.parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))

    def coerce(self, value: Any, schema: Config | None = None) -> Any:
        """`value` with strings parsed where the schema wants no string.

        `--config "finetune={'lr': 0.2}"` hands its leaves over as strings.
        """
        schema = self._resolve(self.root if schema is None else schema)
        if isinstance(value, Mapping):
            named = schema.get("properties", {})
            other = schema.get("additionalProperties")
            other = other if isinstance(other, Mapping) else {}
            return {key: self.coerce(item, named.get(key, other)) for key, item in value.items()}
        if isinstance(value, str) and not _takes(schema, value):
            return _parsed(value)
        return value

    def validate(self, value: Any) -> None:
        """Raise UserError about the first mistake, naming the key and, for a typo, the nearest."""
        self._validate(value, self.root)
        for name, schema in self.root["properties"].items():
            # A section, of which a dataset's file has only a part. Nothing needs all of `split`.
            if "$ref" in schema and name in self.root["required"]:
                self._refuse_gaps(name, value[name], self._resolve(schema))

    def validate_part(self, value: Any) -> None:
        """The same of a configuration that lacks keys at the top."""
        self._validate(value, {**self.root, "required": []})

    def _validate(self, value: Any, root: Config) -> None:
        refuse_unfit(value, "Configuration")
        errors = Validator(root, format_checker=checker).iter_errors(value)
        first = min(errors, key=lambda error: list(map(str, error.path)), default=None)
        if first:
            raise UserError(_sentence(first))

    def _refuse_gaps(self, name: str, section: Config, schema: Config) -> None:
        for key in schema.get("properties", ()):
            if key not in section:
                raise UserError(
                    f"Configuration key {name}.{key} is missing, and has no default; add it to "
                    "config/config.yaml."
                )

    def _resolve(self, schema: Config) -> Config:
        if "$ref" not in schema:
            return schema
        found: Config = self.root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return found


def _kinds(schema: Config) -> list[str]:
    kinds = schema.get("type", "string")
    return kinds if isinstance(kinds, list) else [kinds]


def _takes(schema: Config, text: str) -> bool:
    """Return whether a schema wants the text itself, and not the number or null that it writes."""
    return "string" in _kinds(schema) and (schema.get("pattern") != WORD or text.strip() == AUTO)


def _parsed(text: str) -> Any:
    """The value of a string that no string is wanted of; itself where it has none."""
    try:
        return json.loads(text)  # 1e-3 is a number in JSON, but a string in YAML
    except (ValueError, RecursionError):
        pass
    try:
        return layers.parse_yaml(text, "")
    except UserError:
        return text  # which the schema refuses, naming its key


def _sentence(error: jsonschema.ValidationError) -> str:
    where = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        key = next(key for key in error.instance if key not in known)
        return unknown(f"Configuration key {where + '.' if where else ''}{key}", key, known)
    if error.validator == "required":
        return f"Configuration {where or 'file'}: {one_line(error.message)}."
    described = error.schema.get("description")
    meaning = f" ({described})" if described else ""
    return f"Configuration key {where}{meaning}: {_fault(error)}."


def _fault(error: jsonschema.ValidationError) -> str:
    """What is wrong with the value, which is told."""
    if error.validator == "type" or error.schema.get("pattern") == WORD:
        names = TYPES | ({"string": AUTO} if error.schema.get("pattern") == WORD else {})
        wanted = " or ".join(names[kind] for kind in _kinds(error.schema))
    elif error.validator == "format":
        wanted = FORMATS[error.validator_value]
    elif error.validator == "enum":
        values = error.validator_value
        wanted = "one of " + ", ".join("null" if one is None else str(one) for one in values)
    else:
        return one_line(error.message)
    return f"must be {wanted}, not {one_line(json.dumps(error.instance, ensure_ascii=False), 120)}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not there: the nearest right one, or all of them."""
    return f"{what} is unknown; {suggestion(name, known)}"
