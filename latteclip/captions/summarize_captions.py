"""Statistics of the captions of a dataset."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latteclip.captions.text import mentions, model_of, user_file_of
from latteclip.core import tables
from latteclip.core.files import write_json

PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
TOP = 10  # repeated captions that are named
ROWS = 10_000  # in memory at once
COLUMNS = ("caption", "finish_reason", "n_tokens", "attempts", "error")


def summarize_captions(captions_paths: Sequence[str], images_path: str, output: str) -> None:
    """Write, for each table of captions, lengths, repetitions and failures as JSON.

    Args:
        captions_paths: CAPTIONS tables; each is called by the name of its file.
        images_path: an IMAGES table, for the class names.
        output: the file.
    """
    _, classnames = tables.read_unlabelled(images_path, training=True)
    write_json(output, {Path(path).stem: _summary(path, classnames) for path in captions_paths})


def _summary(path: str, classnames: Sequence[str]) -> dict[str, Any]:
    """Summarise one table in pieces; of most captions only a hash stays in memory."""
    metadata = tables.read_metadata(path, "error")
    names_a_class = mentions(classnames)
    words, tokens = Counter[int](), Counter[int]()
    times = Counter[bytes]()
    count = Counter[str]()
    for row in _rows(path):
        caption = row["caption"]
        count["captions"] += 1
        count["failed"] += row["error"] is not None
        count["empty"] += row["error"] is None and not caption
        count["cut"] += row["finish_reason"] == "length"
        count["asked_twice"] += row["attempts"] > 1
        if caption:
            words[len(caption.split())] += 1
            times[_hash(caption)] += 1
            count["name_a_class"] += names_a_class(caption)
        if row["n_tokens"] is not None:
            tokens[row["n_tokens"]] += 1
    texts = max(1, times.total())
    return {
        "engine": metadata.get("engine"),
        "model": model_of(metadata),
        "file": user_file_of(metadata),
        "prompt": metadata.get("prompt"),
        **{key: count[key] for key in ("captions", "failed", "empty", "cut", "asked_twice")},
        "words": _percentiles(words),
        "tokens": _percentiles(tokens),
        "distinct": len(times),
        "share_duplicates": round(1 - len(times) / texts, 4) if times else 0.0,
        "share_naming_a_class": round(count["name_a_class"] / texts, 4),
        "most_repeated": _most_repeated(path, times),
    }


def _rows(path: str) -> Iterator[dict[str, Any]]:
    for piece in tables.read_pieces(path, tables.CAPTIONS, COLUMNS, ROWS):
        yield from piece.to_pylist()


def _hash(caption: str) -> bytes:
    return hashlib.sha256(caption.encode()).digest()[:12]


def _percentiles(lengths: Counter[int]) -> dict[str, float]:
    if not lengths:
        return {}
    values = np.repeat(list(lengths), list(lengths.values()))
    found = {name: float(np.percentile(values, q)) for name, q in PERCENTILES.items()}
    return {**found, "mean": round(float(values.mean()), 2)}


def _most_repeated(path: str, times: Counter[bytes]) -> list[dict[str, Any]]:
    wanted = {key: n for key, n in times.most_common(TOP) if n > 1}
    texts: dict[bytes, str] = {}
    if wanted:
        for row in _rows(path):
            key = _hash(row["caption"])
            if key in wanted:
                texts[key] = row["caption"]
    found = [{"caption": texts[key], "times": n} for key, n in wanted.items()]
    return sorted(found, key=lambda each: (-int(each["times"]), str(each["caption"])))
