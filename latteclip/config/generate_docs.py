"""The tables of keys in config/README.md, made from the schema and the default configuration.

    python -m latteclip.config.generate_docs      # `make docs`: writes them anew

A table stands between a comment `<!-- keys: NAME -->` and the next `<!-- end -->`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from latteclip.config import layers
from latteclip.config.schema import SCHEMA
from latteclip.core.files import write_text
from latteclip.core.steps import auto_batch_size, auto_epochs, steps_per_epoch

DEFAULTS = layers.CONFIG / "config.yaml"
README = layers.CONFIG / "README.md"
TABLE = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Schema = Mapping[str, Any]
SIZES = (100, 500, 1_500, 5_000, 20_000, 100_000, 1_000_000)  # training images


def render(text: str, schema: Schema, defaults: Mapping[str, Any]) -> str:
    """`text` with each of its tables made anew.

    Tables: config, the keys of a configuration; dataset, those of a dataset's file, which may also
    hold any section of the first; sizes, what "auto" stands for.
    """
    shared = set(schema["properties"])
    rows = {
        "config": [*_rows(schema, schema, defaults, "", skip={"datasets"})],
        "dataset": [*_rows(schema, schema["$defs"]["dataset"], {}, "", skip=shared)],
    }
    tables = {name: _table(found) for name, found in rows.items()} | {"sizes": _sizes()}
    return TABLE.sub(lambda found: found[1] + tables[found[2]] + found[3], text)


def _sizes() -> str:
    """Return what a run of `recommended` does for some numbers of training images."""
    rows = [["training images", "batch size", "epochs", "steps", "captions"], ["---:"] * 5]
    for n in SIZES:
        size, epochs = auto_batch_size(n), auto_epochs(n)
        steps = epochs * steps_per_epoch(n, size)
        rows.append([f"{n:,}", f"{size}", f"{epochs}", f"{steps:,}", f"{n:,}"])
    return _markdown(rows)


def _rows(
    root: Schema, part: Schema, defaults: Any, prefix: str, skip: set[str]
) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of the properties of `part`, section by section.

    A section that is one of the configuration's own is not told again below another.
    """
    for name, value in _children(root, part):
        if not prefix and name in skip:
            continue
        if prefix and value.get("$ref") == root["properties"].get(name, {}).get("$ref", ""):
            yield f"`{prefix}{name}`", "", f"keys of `{name}`, for this one alone"
            continue
        default = defaults.get(name) if isinstance(defaults, Mapping) else None
        known = isinstance(defaults, Mapping) and name in defaults
        key, below = prefix + name, list(_children(root, value))
        shown = "" if below or not known else f"`{_yaml(default)}`"
        yield (f"**`{key}`**" if below else f"`{key}`"), shown, _meaning(value)
        yield from _rows(root, value, default, key + ".", skip)


def _children(root: Schema, part: Schema) -> Iterator[tuple[str, Schema]]:
    """The named properties of an object, or `<name>` for those of any name."""
    if part.get("type") == "array":  # of what its items are like
        yield from _children(root, _resolved(root, part.get("items", {})))
        return
    for name, value in part.get("properties", {}).items():
        yield name, _resolved(root, value)
    other = part.get("additionalProperties")
    if isinstance(other, Mapping) and other != {"type": "string"}:
        yield "<name>", _resolved(root, other)


def _resolved(root: Schema, part: Schema) -> Schema:
    """A part of the schema with what it refers to."""
    if "$ref" not in part:
        return part
    return {**root["$defs"][part["$ref"].rpartition("/")[2]], **part}


def _meaning(part: Schema) -> str:
    """The description, and what values are allowed."""
    words = [part.get("description", "")]
    if "enum" in part:
        words.append("one of " + ", ".join(f"`{_yaml(value)}`" for value in part["enum"]))
    words += [
        f"{word} {part[key]}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in part
    ]
    text = "; ".join(word for word in words if word)
    return text.replace("|", "\\|").replace("<", "&lt;")


def _yaml(value: Any) -> str:
    """A value as one would write it."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Markdown; without the column of defaults where there are none."""
    every: list[tuple[str, ...]] = [("key", "default", "what it is"), ("---", "---", "---"), *rows]
    if not any(default for _, default, _ in rows):
        every = [(key, meaning) for key, _, meaning in every]
    return _markdown(every)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Write config/README.md anew."""
    files = (SCHEMA, DEFAULTS)
    schema, defaults = (yaml.safe_load(file.read_text("utf-8")) for file in files)
    write_text(README, render(README.read_text("utf-8"), schema, defaults))


if __name__ == "__main__":
    main()
