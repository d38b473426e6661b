"""Show captions beside their prompts, images and classes (`latteclip captions show`)."""

import textwrap
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from latteclip.captions.groups import picture_layout
from latteclip.captions.metadata import CaptionsMetadata
from latteclip.captions.pictures import pictures_of, read_image
from latteclip.core import tables
from latteclip.core.errors import UserError

WIDTH = 100


def captions(
    action: Literal["show"], file: str, /, n: int = 5, pictures: str | None = None
) -> str:
    """Show a few captions with their classes and prompts.

    Args:
        action: show
        file: a table of captions: results/<dataset>/captions/*.parquet
        n: number of captions (default: 5), 0 for the headline alone
        pictures: folder for the pictures that the captioner saw
    """
    table = tables.read(file, tables.CAPTIONS)
    metadata = tables.read_metadata(file, CaptionsMetadata)
    results = Path(file).resolve().parents[1]
    index, classnames = tables.read_unlabelled(results / "images.parquet", training=True)
    paths = dict(zip(index["image_id"].to_pylist(), index["path"].to_pylist(), strict=True))
    step = max(1, len(table) // max(1, n))
    rows = table.take(pa.array(range(0, len(table), step), pa.int64())[:n]).to_pylist()
    labels = results / "pseudo_labels.parquet"
    names: list[str | None] = [None] * len(rows)
    if labels.is_file():
        row_labels = tables.lookup(
            labels,
            tables.PSEUDO_LABELS,
            key="image_id",
            column="pseudo_label",
            ids=[row["id"] for row in rows],
        )
        names = [classnames[label] for label in row_labels]
    blocks = [_header(file, len(table), metadata)]
    for row, name in zip(rows, names, strict=True):
        lines = _lines(row, name)
        if pictures is not None:
            saved = save_pictures(row, metadata, paths, pictures)
            lines += [f"  picture   {picture}" for picture in saved]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def save_pictures(
    row: dict[str, Any], metadata: CaptionsMetadata, paths: dict[str, str], folder: str
) -> list[Path]:
    """Write the pictures of a row, from its members and `paths`, to a folder; return the files."""
    if gone := [member for member in row["members"] if member not in paths]:
        raise UserError(f"{gone[0]} is no longer in the image index; rerun the captions.")
    layout = metadata.layout
    if metadata.groups is not None:
        layout = picture_layout(metadata.groups, layout)
    files = [paths[member] for member in row["members"]]
    pictures = pictures_of(layout, files, [read_image(file) for file in files])
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for number, picture in enumerate(pictures):
        suffix = f"-{number}" if len(pictures) > 1 else ""
        written.append(Path(folder, f"{row['id'].replace('/', '-')}{suffix}.png"))
        picture.save(written[-1])
    return written


def _header(path: str, n: int, metadata: CaptionsMetadata) -> str:
    if metadata.source.file is not None:
        return f"{path}: {n} of your captions, from {metadata.source.file}"
    return (
        f"{path}: {n} captions by {metadata.source.model} "
        f"({metadata.engine}, revision {metadata.source.revision}, {metadata.date})"
    )


def _lines(row: dict[str, Any], classname: str | None) -> list[str]:
    lines = [row["id"], f"  prompt    {row['prompt']}"]
    if len(row["members"]) > 1:
        lines.append(f"  members   {', '.join(row['members'])}")
    if classname is not None:
        lines.append(f"  class     {classname} (pseudo-label)")
    caption = row["caption"]
    if not row["attempts"]:
        return [*lines, "  caption   none: max_images left it out"]
    if not caption:
        caption = f"none: {row['error'] or 'empty'}"
    facts = f"{row['finish_reason']}, {row['n_tokens']} tokens"
    if row["attempts"] > 1:
        facts += ", second attempt"
    wrapped = [*textwrap.wrap(caption, WIDTH - 12), f"({facts})"]
    lines.append("  caption   " + "\n            ".join(wrapped))
    return lines
