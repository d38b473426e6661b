"""The JSON Schema of the configuration: types, typos, and one sentence about the first mistake."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from latteclip.core.errors import UserError, suggestion

Config = Mapping[str, Any]


class Schema:
    """A JSON Schema with `$defs`, as YAML."""

    def __init__(self, path: str | Path) -> None:
        self.root = yaml.safe_load(Path(path).read_text(encoding="utf-8"))

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
        kinds = schema.get("type", "string")
        if isinstance(value, str) and "string" not in (
            kinds if isinstance(kinds, list) else [kinds]
        ):
            try:
                return json.loads(value)  # 1e-3 is a number in JSON, but a string in YAML
            except json.JSONDecodeError:
                return yaml.safe_load(value)
        return value

    def validate(self, value: Any) -> None:
        """Raise UserError about the first mistake, naming the key and, for a typo, the nearest."""
        validator = jsonschema.Draft202012Validator(self.root)
        errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
        if errors:
            raise UserError(_sentence(errors[0]))

    def _resolve(self, schema: Config) -> Config:
        if "$ref" not in schema:
            return schema
        found: Config = self.root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return found


def _sentence(error: jsonschema.ValidationError) -> str:
    where = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        key = next(key for key in error.instance if key not in known)
        return unknown(f"Configuration key {where + '.' if where else ''}{key}", key, known)
    if error.validator == "required":
        return f"Configuration {where or 'file'}: {error.message}."
    described = error.schema.get("description")
    meaning = f" ({described})" if described else ""
    return f"Configuration key {where}{meaning}: {error.message}."


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not there: the nearest right one, or all of them."""
    return f"{what} is unknown; {suggestion(name, known)}"
