"""Joins the shards of a table of captions, or of class scores."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards in the order of the image index."""
    schema = _schema(shard_paths[0])
    id_column = schema.names[0]
    metadata = _metadata([tables.read_metadata(path, id_column) for path in shard_paths])
    index, _ = tables.read_unlabelled(images_path, training=True)
    rows = pa.concat_tables(tables.read(path, schema)[0] for path in shard_paths)
    # Not every image has a group.
    order = pc.index_in(index["image_id"], rows[id_column]).combine_chunks().drop_null()
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


def _metadata(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metadata of all shards together: engines, sums of tokens, last date."""
    engines = {name for shard in shards for name in shard["engine"].split(", ") if name}
    return {
        **shards[0],
        "engine": ", ".join(sorted(engines)),
        "date": max(shard["date"] or "" for shard in shards) or None,
        **{key: sum(s[key] for s in shards) for key in ("tokens_read", "tokens_written")},
    }
