"""The shards of a table of captions, or of class scores, put together again."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from latteclip.captions.requests import shard_of
from latteclip.core import tables
from latteclip.core.errors import UserError

ROWS = 256  # of each shard, in memory at once
# What the metadata of shards may differ in beside their dates.
JOINED, ADDED = ("engine", "code"), ("tokens_read", "tokens_written")


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards in the order of the image index.

    Args:
        images_path: the IMAGES table that the shards were made from.
        shard_paths: CAPTIONS or CLASS_SCORES tables of shard 1, 2, ... in this order.
        output: the file.

    Raises:
        UserError: the shards were not made from this index, or not with the same settings.
    """
    schema = _schema(shard_paths[0])
    metadata = _metadata(shard_paths, schema.names[0])
    index, _ = tables.read_unlabelled(images_path, training=True)
    rows = [_Rows(path, schema) for path in shard_paths]
    with tables.writing(output, schema, metadata) as add:
        batch: list[dict[str, Any]] = []
        for image_id in index["image_id"].to_pylist():
            shard = rows[shard_of(image_id, len(rows)) - 1]
            if shard.next_id == image_id:  # not every image has a group
                batch.append(shard.take())
            if len(batch) == tables.CAPTION_ROWS:
                add(tables.as_columns(batch, schema))
                batch = []
        left = [(shard.path, shard.next_id) for shard in rows if shard.next_id is not None]
        if left:
            path, row_id = left[0]
            raise UserError(
                f"{path} has a row {row_id!r} that {images_path} does not call for; delete it and "
                "rerun."
            )
        add(tables.as_columns(batch, schema))


def _schema(path: str) -> pa.Schema:
    """The schema that a shard has; the first of its columns is the image_id."""
    with contextlib.suppress(UserError):  # the one that is told is of the other kind
        tables.read_metadata(path, tables.CLASS_SCORES.names[1])
        return tables.CLASS_SCORES
    return tables.CAPTIONS


def _metadata(paths: Sequence[str], id_column: str) -> dict[str, Any]:
    """The metadata of all shards together: engines and code versions, tokens, last date."""
    every = [tables.read_metadata(path, id_column) for path in paths]
    result = dict(every[0])
    for path, other in zip(paths, every, strict=True):
        for key, value in other.items():
            if key not in (*JOINED, *ADDED, "date") and result.get(key) != value:
                raise UserError(
                    f"{path} and {paths[0]} differ in their {key}; delete them and rerun."
                )
    for key in JOINED:
        names = {name for each in every for name in each[key].split(", ") if name}
        result[key] = ", ".join(sorted(names))
    for key in ADDED:
        result[key] = sum(each[key] for each in every)
    result["date"] = max((each["date"] for each in every if each["date"]), default=None)
    return result


class _Rows:
    """The rows of a shard, one after the other; only a few are in memory."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.path, self._schema = path, schema
        self._rows = self._read()
        self._next = next(self._rows, None)

    @property
    def next_id(self) -> str | None:
        return None if self._next is None else self._next[self._schema.names[0]]

    def take(self) -> dict[str, Any]:
        row = self._next
        assert row is not None
        self._next = next(self._rows, None)
        return row

    def _read(self) -> Iterator[dict[str, Any]]:
        for piece in tables.read_pieces(self.path, self._schema, self._schema.names, ROWS):
            yield from piece.to_pylist()
