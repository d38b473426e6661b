"""Joins the shards of a table of captions, or of class scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latteclip.core import tables


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards in the order of the image index."""
    is_scores = "options" in pq.read_schema(shard_paths[0]).names
    schema = tables.CLASS_SCORES if is_scores else tables.CAPTIONS
    parts, metadata = zip(*(tables.read(path, schema) for path in shard_paths), strict=True)
    rows, id_column = pa.concat_tables(parts), schema.names[0]
    index, _ = tables.read_unlabelled(images_path, training=True)
    # Not every image has a group.
    order = pc.index_in(index["image_id"], rows[id_column]).combine_chunks().drop_null()
    with tables.writing(output, schema, _joined(metadata)) as add:
        for start in range(0, max(1, len(order)), tables.CAPTION_ROWS):
            piece = rows.take(order[start : start + tables.CAPTION_ROWS]).combine_chunks()
            add({name: piece[name] for name in schema.names})


def _joined(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metadata of all shards together: engines, sums of tokens, last date."""
    engines = {name for shard in shards for name in shard["engine"].split(", ") if name}
    return {
        **shards[0],
        "engine": ", ".join(sorted(engines)),
        "date": max(shard["date"] or "" for shard in shards) or None,
        **{key: sum(s[key] for s in shards) for key in ("tokens_read", "tokens_written")},
    }
