"""Write what the sections of the configuration say where users read it.

    python tools/generate_docs.py      # `make docs`

These are the tables in docs/configuration.md and docs/reference.md, each between a comment
`<!-- keys: NAME -->` and the next `<!-- end -->`. Not in git is docs/schema.json, by which editors
check and complete keys.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types as bounds
import pyarrow as pa

from latteclip.config import layers
from latteclip.config.keys import Config, DatasetSection, Section, Shared
from latteclip.config.schema import section_of
from latteclip.core import tables
from latteclip.core.files import write_text
from latteclip.train.settings import auto_batch_size, auto_epochs, steps_per_epoch

DOCS = layers.ROOT / "docs"  # of a clone
PAGES = (DOCS / "configuration.md", DOCS / "reference.md")
SCHEMA = DOCS / "schema.json"
# The schema of a table in the source, and a column of it with the comments before and beside it.
TABLES = re.compile(
    r"^(\w+) = _schema\([^\n)]*\n(.*?)^\)", re.DOTALL | re.MULTILINE
)
COLUMN = re.compile(r"((?: +# .*\n)*) +(\w+)=.+?,(?:  # (.*))?\n")
TABLE = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIZES = (100, 500, 1_500, 5_000, 20_000, 100_000, 1_000_000)  # training images
BOUNDS = {
    bounds.Ge: ("≥", "ge"),
    bounds.Gt: (">", "gt"),
    bounds.Le: ("≤", "le"),
    bounds.Lt: ("<", "lt"),
}
UNSAID = (
    {bounds.Ge: 0},
    {bounds.Ge: 1},
    {bounds.Gt: 0},
    {bounds.Ge: 0, bounds.Le: 1},
    {bounds.Gt: 0, bounds.Le: 1},
    {bounds.Gt: 0, bounds.Lt: 1},
    {bounds.Ge: 0, bounds.Lt: 1},
)
Row = tuple[str, str, str]


def schema() -> str:
    """Return the JSON schema of the configuration."""
    return (
        json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    )


def render(text: str) -> str:
    """Return `text` with its tables: keys of config, a dataset and both, sizes, and columns."""
    head = [("key", "default", "meaning"), ("---", "---", "---")]
    keys = [*head, *_rows(Config, "", skip={"datasets"})]
    dataset = [*head, *_rows(DatasetSection, "", skip=set(Config.model_fields))]
    written = {
        "config": _markdown(keys),
        "dataset": _markdown(dataset),
        "shared": ", ".join(f"`{key}`" for key in sorted(Shared.model_fields))
        + "\n",
        "sizes": _sizes(),
        "columns": _columns(),
    }
    return TABLE.sub(lambda found: found[1] + written[found[2]] + found[3], text)


def _sizes() -> str:
    """Return the settings of `recommended` for some numbers of training images."""
    rows = [["training images", "batch size", "epochs", "steps"], ["---:"] * 4]
    for n in SIZES:
        size = auto_batch_size(n)
        epochs = auto_epochs(n)
        steps = epochs * steps_per_epoch(n, size)
        rows.append([f"{n:,}", f"{size}", f"{epochs}", f"{steps:,}"])
    return _markdown(rows)


def _columns() -> str:
    """Return the columns of all tables, with the comments that they have in the source."""
    comments = dict[tuple[str, str], str]()
    for table, columns in TABLES.findall(Path(tables.__file__).read_text("utf-8")):
        for before, column, beside in COLUMN.findall(columns):
            lines = [line.strip("# ") for line in before.splitlines()]
            comments[table, column] = " ".join([*lines, beside]).strip()
    rows = [("table", "column", "type", "meaning"), ("---",) * 4]
    for table, schema in vars(tables).items():
        for column in schema if isinstance(schema, pa.Schema) else ():
            meaning = _escaped(comments.get((table, column.name), ""))
            kind = _escaped(str(column.type))
            rows.append((f"`{table}`", f"`{column.name}`", kind, meaning))
    return _markdown(rows)


def _rows(section: type[Section], prefix: str, skip: set[str]) -> Iterator[Row]:
    """Yield (key, default, meaning) of the keys of a section and of the sections inside it."""
    for name, field in section.model_fields.items():
        if not prefix and name in skip:
            continue
        key = prefix + name
        meaning = _escaped(_meaning(field.annotation, field))
        inner = section_of(field.annotation)
        if inner is None:
            default = "" if field.is_required() else f"`{_yaml(field.default)}`"
            yield f"`{key}`", default, meaning
        elif prefix and name in Shared.model_fields:
            yield f"`{key}`", "", meaning
        else:
            yield f"**`{key}`**", "", meaning
            is_by_name = get_origin(field.annotation) is dict
            item = f"{key}[]." if _is_list(field.annotation) else f"{key}."
            yield from _rows(inner, f"{key}.<name>." if is_by_name else item, skip)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def _meaning(annotation: Any, field: Any = None, described: str = "") -> str:
    """Return the description of a key, its choices that this does not name, and its bounds."""
    words = [_described(field)] if field else []
    described = described or "".join(words)
    if get_origin(annotation) is Literal:
        values = get_args(annotation)
        if any(str(value) not in described for value in values):
            words.append("one of " + ", ".join(f"`{value}`" for value in values))
    elif (
        get_origin(annotation) not in (dict, list)
        and section_of(annotation) is None
    ):
        words += [
            _meaning(part, described=described) for part in get_args(annotation)
        ]
    metadata = (
        *getattr(field, "metadata", ()),
        *getattr(annotation, "metadata", ()),
    )
    words.append(_bounds(metadata))
    return "; ".join(filter(None, words))


def _described(field: Any) -> str:
    """Return the description of a key, for a section the first line of its documentation."""
    if field.description:
        return " ".join(field.description.split())
    section = section_of(field.annotation)
    first = (section.__doc__ or "").partition("\n")[0] if section else ""
    if first[1:2].islower():
        first = first[:1].lower() + first[1:]
    return first.removesuffix(".")


def _bounds(metadata: Sequence[Any]) -> str:
    """Return the bounds of a number, without those of a share or a count, which go unsaid."""
    found = {type(each): each for each in metadata if type(each) in BOUNDS}
    limits = {kind: getattr(each, BOUNDS[kind][1]) for kind, each in found.items()}
    if limits in UNSAID:
        return ""
    if limits.keys() == {bounds.Ge, bounds.Le}:
        return f"{limits[bounds.Ge]} to {limits[bounds.Le]}"
    return ", ".join(
        f"{BOUNDS[kind][0]} {limit}" for kind, limit in limits.items()
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _yaml(value: Any) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def files() -> dict[Path, str]:
    """Return the committed files that are written, each with its text."""
    return {page: render(page.read_text("utf-8")) for page in PAGES}


if __name__ == "__main__":
    for path, text in (files() | {SCHEMA: schema()}).items():
        write_text(path, text)
