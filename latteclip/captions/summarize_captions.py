"""Statistics of the captions of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.captions.text import count_mentions, model_of, user_file_of
from latteclip.core import tables
from latteclip.core.files import write_json

PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
TOP = 10  # repeated captions that are named
COLUMNS = ("caption", "finish_reason", "n_tokens", "attempts", "error")


def summarize_captions(captions_paths: Sequence[str], images_path: str, output: str) -> None:
    """Write, for each table of captions, lengths, repetitions and failures as JSON."""
    _, classnames = tables.read_unlabelled(images_path, training=True)
    write_json(output, {Path(path).stem: _summary(path, classnames) for path in captions_paths})


def _summary(path: str, classnames: Sequence[str]) -> dict[str, Any]:
    table, metadata = tables.read(path, tables.CAPTIONS, COLUMNS)
    is_empty, failed = pc.equal(table["caption"], ""), pc.is_valid(table["error"])
    texts = table["caption"].filter(pc.invert(is_empty))
    counts = pc.value_counts(texts)  # in the order of their first row
    return {
        "engine": metadata.get("engine"),
        "model": model_of(metadata),
        "file": user_file_of(metadata),
        "prompt": metadata.get("prompt"),
        "captions": len(table),
        "failed": _count(failed),
        "empty": _count(pc.and_not(is_empty, failed)),
        "cut": _count(pc.equal(table["finish_reason"], "length")),
        "asked_twice": _count(pc.greater(table["attempts"], 1)),
        "words": _percentiles(pc.count_substring_regex(texts, r"\S+")),
        "tokens": _percentiles(table["n_tokens"].drop_null()),
        "distinct": len(counts),
        "share_duplicates": round(1 - len(counts) / len(texts), 4) if len(texts) else 0.0,
        "share_naming_a_class": round(count_mentions(texts, classnames) / max(1, len(texts)), 4),
        "most_repeated": _most_repeated(counts),
    }


def _count(is_true: pa.ChunkedArray) -> int:
    return int(pc.sum(is_true).as_py() or 0)


def _percentiles(lengths: pa.ChunkedArray) -> dict[str, float]:
    if not len(lengths):
        return {}
    values = lengths.to_numpy()
    found = {name: float(np.percentile(values, q)) for name, q in PERCENTILES.items()}
    return {**found, "mean": round(float(values.mean()), 2)}


def _most_repeated(counts: pa.StructArray) -> list[dict[str, Any]]:
    times = counts.field("counts").to_numpy()
    best = [int(i) for i in np.argsort(-times, kind="stable")[:TOP] if times[i] > 1]
    found = [{"caption": counts[i]["values"].as_py(), "times": int(times[i])} for i in best]
    return sorted(found, key=lambda each: (-each["times"], each["caption"]))
