"""Write the tables of keys in docs/configuration.md from the model and the default configuration.

    python tools/generate_docs.py      # `make docs`

A table stands between a comment `<!-- keys: NAME -->` and the next `<!-- end -->`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import annotated_types as bounds
import yaml

from latteclip.config import layers
from latteclip.config.model import Config, Dataset, Section, Shared, section_of
from latteclip.core.files import write_text
from latteclip.train.settings import auto_batch_size, auto_epochs, steps_per_epoch

PAGE = layers.ROOT / "docs" / "configuration.md"  # of a clone
TABLE = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIZES = (100, 500, 1_500, 5_000, 20_000, 100_000, 1_000_000)  # training images
BOUNDS = {
    bounds.Ge: ("≥", "ge"),
    bounds.Gt: (">", "gt"),
    bounds.Le: ("≤", "le"),
    bounds.Lt: ("<", "lt"),
}
Row = tuple[str, str, str]


def render(text: str) -> str:
    """Return `text` with its tables: config, dataset (without keys of config), and sizes."""
    defaults = yaml.safe_load((layers.CONFIG / "config.yaml").read_text("utf-8"))
    head = [("key", "default", "meaning"), ("---", "---", "---")]
    keys = [*head, *_rows(Config, defaults, "", skip={"datasets"})]
    dataset = [*head, *_rows(Dataset, {}, "", skip=set(Config.model_fields))]
    tables = {
        "config": _markdown(keys),
        "dataset": _markdown([(key, meaning) for key, _, meaning in dataset]),
        "sizes": _sizes(),
    }
    return TABLE.sub(lambda found: found[1] + tables[found[2]] + found[3], text)


def _sizes() -> str:
    """Return the settings of `recommended` for some numbers of training images."""
    rows = [["training images", "batch size", "epochs", "steps"], ["---:"] * 4]
    for n in SIZES:
        size, epochs = auto_batch_size(n), auto_epochs(n)
        steps = epochs * steps_per_epoch(n, size)
        rows.append([f"{n:,}", f"{size}", f"{epochs}", f"{steps:,}"])
    return _markdown(rows)


def _rows(section: type[Section], defaults: Any, prefix: str, skip: set[str]) -> Iterator[Row]:
    """Yield (key, default, meaning) of the keys of a section and of the sections inside it."""
    values = defaults if isinstance(defaults, Mapping) else {}
    for name in dict.fromkeys((*values, *section.model_fields)):
        if not prefix and name in skip:
            continue
        field, key, default = section.model_fields[name], prefix + name, values.get(name)
        inner = section_of(field.annotation)
        if inner is None or (prefix and name in Shared.model_fields):
            shown = f"`{_yaml(default)}`" if name in values else ""
            yield f"`{key}`", shown, _meaning(field.annotation, field)
        else:
            yield f"**`{key}`**", "", _meaning(field.annotation, field)
            by_name = get_origin(field.annotation) is dict
            below = f"{key}.<name>." if by_name else f"{key}."
            yield from _rows(inner, {} if by_name else default, below, skip)


def _meaning(annotation: Any, field: Any = None) -> str:
    """Return the description of a key, its choices and its bounds."""
    words = [field.description or ""] if field else []
    if get_origin(annotation) is Literal and get_args(annotation) != ("auto",):
        words.append("one of " + ", ".join(f"`{value}`" for value in get_args(annotation)))
    elif get_origin(annotation) not in (dict, list) and section_of(annotation) is None:
        words += [_meaning(part) for part in get_args(annotation)]
    for bound in [*getattr(field, "metadata", ()), *getattr(annotation, "metadata", ())]:
        if type(bound) in BOUNDS:
            sign, attribute = BOUNDS[type(bound)]
            words.append(f"{sign} {getattr(bound, attribute)}")
    return "; ".join(filter(None, words)).replace("|", "\\|").replace("<", "&lt;")


def _yaml(value: Any) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    write_text(PAGE, render(PAGE.read_text("utf-8")))
