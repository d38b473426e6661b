"""Show captions beside their prompts, images and classes (`latteclip captions show`)."""

import os
import textwrap
from pathlib import Path
from typing import Any

from latteclip.captions.pictures import Layout, pictures_of, read_image, single_layout
from latteclip.captions.requests import GroupSettings
from latteclip.captions.text import user_file_of
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.settings import from_values

WIDTH = 100


def show(path: str, n: int, pictures: str | None = None) -> str:
    """Return a few captions as text.

    Args:
        path: of a CAPTIONS table. The image index is in the folder above.
        n: how many captions, spread over the table.
        pictures: folder that gets the pictures as the model saw them.
    """
    table, metadata = tables.read(path, tables.CAPTIONS)
    index_path = _index_of(path)
    index, classnames = tables.read_unlabelled(index_path, training=True)
    paths = dict(zip(index["image_id"].to_pylist(), index["path"].to_pylist(), strict=True))
    labels = _pseudo_labels(index_path.with_name("pseudo_labels.parquet"))
    step = max(1, len(table) // max(1, n))
    blocks = [_header(path, len(table), metadata)]
    for row in table.take(list(range(0, len(table), step))[:n]).to_pylist():
        label = labels.get(row["id"]) if row["pseudo_label"] is None else row["pseudo_label"]
        lines = _lines(row, None if label is None else classnames[label])
        if pictures is not None:
            files = save_pictures(row, metadata, paths, pictures)
            lines += [f"  picture   {file}" for file in files]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def save_pictures(
    row: dict[str, Any], metadata: dict[str, Any], paths: dict[str, str], folder: str
) -> list[Path]:
    """Write the pictures of a row, from its members and `paths`, to a folder; return the files."""
    if gone := [member for member in row["members"] if member not in paths]:
        raise UserError(
            f"{gone[0]} of the row {row['id']!r} is no longer in the image index: its picture "
            "cannot be made again; ask for other rows, or rerun the captions."
        )
    files = [paths[member] for member in row["members"]]
    pictures = pictures_of(_layout(metadata), files, [read_image(file) for file in files])
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = row["id"].replace(os.sep, "-")
    names = [f"{name}-{number}.png" for number in range(len(pictures))]
    written = [Path(folder) / each for each in (names if len(names) > 1 else [f"{name}.png"])]
    for picture, file in zip(pictures, written, strict=True):
        picture.save(file)
    return written


def _layout(metadata: dict[str, Any]) -> Layout:
    captioner = metadata["captioner"]
    layout = single_layout(captioner.get("max_image_side"), captioner.get("square_side"))
    if "groups" not in metadata:
        return layout
    return from_values(GroupSettings, metadata["groups"]).picture_layout(layout)


def _index_of(path: str) -> Path:
    for folder in Path(path).resolve().parents:
        if folder.name == "captions":
            return folder.parent / "images.parquet"
    raise UserError(f"{path} is not in a folder results/<dataset>/captions.")


def _pseudo_labels(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    table, _ = tables.read(path, tables.PSEUDO_LABELS, ["image_id", "pseudo_label"])
    return dict(zip(*table.to_pydict().values(), strict=True))


def _header(path: str, n: int, metadata: dict[str, Any]) -> str:
    if file := user_file_of(metadata):
        return f"{path}: {n} of your captions, from {file}"
    captioner = metadata["captioner"]
    return (
        f"{path}: {n} captions by {captioner['model']} "
        f"({metadata['engine']}, revision {captioner['revision']}, {metadata['date']})"
    )


def _lines(row: dict[str, Any], classname: str | None) -> list[str]:
    facts = [row["finish_reason"], f"{row['n_tokens']} tokens"]
    if row["attempts"] > 1:
        facts.append("second attempt")
    lines = [row["id"], f"  prompt    {row['prompt']}"]
    if len(row["members"]) > 1:
        lines.append(f"  members   {', '.join(row['members'])}")
    if classname is not None:
        lines.append(f"  class     {classname} (pseudo-label)")
    caption = textwrap.wrap(row["caption"] or f"none: {row['error'] or 'empty'}", WIDTH - 12)
    lines.append("  caption   " + "\n            ".join(caption))
    return [*lines, f"            ({', '.join(facts)})"]
