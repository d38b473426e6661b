"""Show captions beside their prompts and images (`latteclip captions show`)."""

import textwrap
from typing import Any, Literal

import pyarrow as pa

from latteclip.captions.table import CaptionsMetadata
from latteclip.core import tables

WIDTH = 88


def captions(action: Literal["show"], file: str, /, n: int = 5) -> str:
    """Show a few captions with their prompts.

    Args:
        action: show
        file: a table of captions: results/<dataset>/captions/*.parquet
        n: number of captions (default: 5)
    """
    table = tables.read(file, tables.CAPTIONS)
    metadata = tables.read_metadata(file, CaptionsMetadata)
    step = max(1, len(table) // max(1, n))
    rows = table.take(pa.array(range(0, len(table), step), pa.int64())[:n]).to_pylist()
    source = metadata.file or f"{metadata.model} ({metadata.engine}, {metadata.date})"
    return "\n\n".join([f"{file}: {len(table)} captions by {source}", *map(_lines, rows)])


def _lines(row: dict[str, Any]) -> str:
    lines = [row["id"], f"  prompt    {row['prompt']}"]
    if len(row["members"]) > 1:
        lines.append(f"  members   {', '.join(row['members'])}")
    caption = row["caption"] or f"none: {row['error'] or row['finish_reason']}"
    wrapped = textwrap.wrap(f"{caption} ({row['finish_reason']})", WIDTH)
    lines.append("  caption   " + "\n            ".join(wrapped))
    return "\n".join(lines)
