import json

import numpy as np
import pyarrow as pa
import pytest

from latteclip.captions.summarize_captions import summarize_captions
from latteclip.captions.text import count_mentions, mention


def test_the_summary_counts_lengths_repetitions_failures_and_class_names(captioned):
    paths = [
        str(captioned.folder / f"captions/{kind}.parquet") for kind in ("images", "groups")
    ]
    output = captioned.folder / "captions/summary.json"
    summarize_captions(paths, captioned.images, str(output))
    summary = json.loads(output.read_text())
    assert list(summary) == ["images", "groups"]
    images = summary["images"]
    counts = {"captions": 7, "failed": 1, "empty": 1, "cut": 2, "asked_twice": 3}
    assert {name: images[name] for name in counts} == counts
    assert images["words"] == {"min": 2, "max": 4, "mean": 2.8}
    assert images["tokens"]["min"] == 0
    assert images["distinct"] == 4
    assert images["share_duplicates"] == pytest.approx(1 - 4 / 5)
    assert images["share_naming_a_class"] == pytest.approx(2 / 5)
    assert images["most_repeated"] == [{"caption": "A grid", "times": 2}]
    assert (images["model"], images["prompt"]) == ("some/model", "What?")
    groups = summary["groups"]
    assert groups["share_naming_a_class"] == 1
    assert groups["most_repeated"] == [{"caption": "lines", "times": 7}]


def test_class_names_are_found_as_if_each_were_looked_for(monkeypatch):
    monkeypatch.setattr("latteclip.captions.text.NAMES", 20)
    draw = np.random.default_rng(0)
    letters = ["a", "b", "C", " ", ".", "-", "é", "("]

    def words(n, longest):
        drawn = (draw.choice(letters, draw.integers(1, longest + 1)) for _ in range(n))
        return ["".join(each).strip() for each in drawn]

    names = list(dict.fromkeys(filter(None, words(60, 6))))
    plain = [*map(mention, names[5:])]
    found = [
        (
            count_mentions(pa.chunked_array([[text]]), names[5:]),
            any(p.search(text) for p in plain),
        )
        for text in words(500, 9)
    ]
    assert {one for one, _ in found} == {True, False}
    assert all(one == other for one, other in found)
