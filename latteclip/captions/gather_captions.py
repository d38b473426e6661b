"""The shards of a table of captions, put together again."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from latteclip.captions.shard import shard_of
from latteclip.core import tables
from latteclip.core.errors import UserError

ROWS = 256  # of each shard, in memory at once
JOINED = ("engine", "code")  # what the metadata of shards may differ in


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards in the order of the image index.

    Args:
        images_path: the IMAGES table that the shards were made from.
        shard_paths: CAPTIONS tables of shard 1, 2, ... in this order.
        output: the file.

    Raises:
        UserError: the shards were not made from this index, or not with the same settings.
    """
    metadata = _metadata(shard_paths)
    index, _ = tables.read_unlabelled(images_path, training=True)
    rows = [_Rows(path) for path in shard_paths]
    with tables.writing(output, tables.CAPTIONS, metadata) as add:
        batch: list[dict[str, Any]] = []
        for image_id in index["image_id"].to_pylist():
            shard = rows[shard_of(image_id, len(rows)) - 1]
            if shard.next_id == image_id:  # not every image has a group
                batch.append(shard.take())
            if len(batch) == tables.CAPTION_ROWS:
                add(tables.as_columns(batch, tables.CAPTIONS))
                batch = []
        left = [(shard.path, shard.next_id) for shard in rows if shard.next_id is not None]
        if left:
            path, row_id = left[0]
            raise UserError(
                f"{path} has a row {row_id!r} that {images_path} does not call for; delete it and "
                "rerun."
            )
        add(tables.as_columns(batch, tables.CAPTIONS))


def _metadata(paths: Sequence[str]) -> dict[str, Any]:
    """The metadata of all shards together: engines and code versions joined, the last date."""
    every = [tables.read_metadata(path, "id") for path in paths]
    result = dict(every[0])
    for path, other in zip(paths, every, strict=True):
        for key, value in other.items():
            if key not in (*JOINED, "date") and result.get(key) != value:
                raise UserError(
                    f"{path} and {paths[0]} differ in their {key}; delete them and rerun."
                )
    for key in JOINED:
        names = {name for each in every for name in each[key].split(", ") if name}
        result[key] = ", ".join(sorted(names))
    result["date"] = max((each["date"] for each in every if each["date"]), default=None)
    return result


class _Rows:
    """The rows of a shard, one after the other; only a few are in memory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._rows = self._read()
        self._next = next(self._rows, None)

    @property
    def next_id(self) -> str | None:
        return None if self._next is None else self._next["id"]

    def take(self) -> dict[str, Any]:
        row = self._next
        assert row is not None
        self._next = next(self._rows, None)
        return row

    def _read(self) -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS):
                yield from batch.to_pylist()
