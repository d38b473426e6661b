"""Joins the shards of a table of captions, or of class scores."""

import contextlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError

ADDED = ("tokens_read", "tokens_written")  # metadata that are sums over the shards


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards in the order of the image index.

    Args:
        images_path: the IMAGES table that the shards were made from.
        shard_paths: CAPTIONS or CLASS_SCORES tables of all shards.
        output: the file.

    Raises:
        UserError: the shards were not made from this index, or not with the same settings.
    """
    schema = _schema(shard_paths[0])
    metadata = _metadata(shard_paths, schema.names[0])
    index, _ = tables.read_unlabelled(images_path, training=True)
    rows = pa.concat_tables(tables.read(path, schema)[0] for path in shard_paths)
    ids = rows[schema.names[0]].combine_chunks()
    # Not every image has a group.
    order = pc.index_in(index["image_id"], ids).combine_chunks().drop_null()
    if len(order) < len(rows):
        strange = set(ids.to_pylist()) - set(index["image_id"].to_pylist())
        raise UserError(
            f"{', '.join(shard_paths)} have rows that are not in {images_path} or repeated "
            f"({sorted(strange)[:1]}); delete them and rerun."
        )
    with tables.writing(output, schema, metadata) as add:
        for start in range(0, max(1, len(order)), tables.CAPTION_ROWS):
            piece = rows.take(order[start : start + tables.CAPTION_ROWS]).combine_chunks()
            add({name: piece[name] for name in schema.names})


def _schema(path: str) -> pa.Schema:
    """Return the schema of a shard; the first of its columns is the image_id."""
    with contextlib.suppress(UserError):  # the shard has captions
        tables.read_metadata(path, tables.CLASS_SCORES.names[1])
        return tables.CLASS_SCORES
    return tables.CAPTIONS


def _metadata(paths: Sequence[str], id_column: str) -> dict[str, Any]:
    """Return the metadata of all shards together: engines, sums of tokens, last date."""
    shards = [tables.read_metadata(path, id_column) for path in paths]
    result = dict(shards[0])
    for path, shard in zip(paths, shards, strict=True):
        for key, value in shard.items():
            if key not in ("engine", "date", *ADDED) and result.get(key) != value:
                raise UserError(
                    f"{path} and {paths[0]} differ in their {key}; delete them and rerun."
                )
    engines = {name for shard in shards for name in shard["engine"].split(", ") if name}
    result["engine"] = ", ".join(sorted(engines))
    for key in ADDED:
        result[key] = sum(shard[key] for shard in shards)
    result["date"] = max((shard["date"] for shard in shards if shard["date"]), default=None)
    return result
