"""Statistics of the captions of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.captions.metadata import CaptionsMetadata
from latteclip.captions.text import count_mentions
from latteclip.core import tables
from latteclip.core.files import write_json

TOP = 10  # repeated captions that are named
COLUMNS = ("caption", "finish_reason", "n_tokens", "attempts", "error")


def summarize_captions(
    captions_paths: Sequence[str], images_path: str, output: str
) -> None:
    """Write, for each table of captions, lengths, repetitions and failures as JSON."""
    _, classnames = tables.read_unlabelled(images_path, training=True)
    write_json(
        output, {Path(path).stem: _summary(path, classnames) for path in captions_paths}
    )


def _summary(path: str, classnames: Sequence[str]) -> dict[str, Any]:
    table = tables.read(path, tables.CAPTIONS, COLUMNS)
    metadata = tables.read_metadata(path, CaptionsMetadata)
    is_empty = pc.equal(table["caption"], "")
    failed = pc.is_valid(table["error"])
    not_asked = _count(pc.equal(table["attempts"], 0))
    texts = table["caption"].filter(pc.invert(is_empty))
    counts = pc.value_counts(texts)
    return {
        "engine": metadata.engine,
        "model": metadata.source.model,
        "file": metadata.source.file,
        "prompt": metadata.prompt,
        "captions": len(table),
        "failed": _count(failed),
        "empty": _count(pc.and_not(is_empty, failed)) - not_asked,
        "not_asked": not_asked,
        "cut": _count(pc.equal(table["finish_reason"], "length")),
        "asked_twice": _count(pc.greater(table["attempts"], 1)),
        "words": _lengths(pc.count_substring_regex(texts, r"\S+")),
        "tokens": _lengths(table["n_tokens"].drop_null()),
        "distinct": len(counts),
        "share_duplicates": round(1 - len(counts) / len(texts), 4) if len(texts) else 0.0,
        "share_naming_a_class": round(
            count_mentions(texts, classnames) / max(1, len(texts)), 4
        ),
        "most_repeated": _most_repeated(counts),
    }


def _count(is_true: pa.ChunkedArray) -> int:
    return int(pc.sum(is_true).as_py() or 0)


def _lengths(values: pa.ChunkedArray) -> dict[str, float]:
    if not len(values):
        return {}
    return {**pc.min_max(values).as_py(), "mean": round(pc.mean(values).as_py(), 2)}


def _most_repeated(counts: pa.StructArray) -> list[dict[str, Any]]:
    repeated = pa.Table.from_struct_array(counts).filter(
        pc.greater(counts.field("counts"), 1)
    )
    best = repeated.sort_by([("counts", "descending"), ("values", "ascending")]).slice(
        0, TOP
    )
    return best.rename_columns(["caption", "times"]).to_pylist()  # type: ignore[no-any-return]
