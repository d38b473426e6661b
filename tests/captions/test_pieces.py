"""What is computed in pieces, for datasets of a million images, equals the whole."""

import re

import numpy as np
import torch
from support.tiny import write_captions, write_index

from latteclip.captions import gather_captions
from latteclip.captions.requests import shard_of
from latteclip.captions.text import mentions
from latteclip.core import tables
from latteclip.train.objectives import base as texts

N, C, D, K = 23, 7, 5, 3


# --- captions ------------------------------------------------------------------------------------


def test_shards_are_gathered_in_pieces(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(N)]
    index = write_index(tmp_path / "images.parquet", names, ["train"] * N, [None] * N, ["a", "b"])
    paths = []
    for number in (1, 2, 3):
        own = [name for name in names if shard_of(name, 3) == number]
        paths.append(write_captions(tmp_path / f"{number}.parquet", own, [f"of {n}" for n in own]))
    monkeypatch.setattr(gather_captions, "ROWS", 2)
    monkeypatch.setattr(gather_captions, "_metadata", lambda *_: {})
    gather_captions.gather_captions(index, paths, str(tmp_path / "all.parquet"))
    table, _ = tables.read(tmp_path / "all.parquet", tables.CAPTIONS, ["id", "caption"])
    assert table["id"].to_pylist() == names
    assert table["caption"].to_pylist() == [f"of {name}" for name in names]


def test_class_names_are_found_as_if_each_were_looked_for():
    draw = np.random.default_rng(0)
    letters = ["a", "b", "C", " ", ".", "-", "é", "("]

    def words(n, longest):
        return [
            "".join(draw.choice(letters, draw.integers(1, longest + 1))).strip() for _ in range(n)
        ]

    names = list(dict.fromkeys(filter(None, words(60, 6))))
    plain = [re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE) for name in names[5:]]
    names_a_class = mentions(names[5:])
    found = [(names_a_class(text), any(p.search(text) for p in plain)) for text in words(500, 9)]
    assert {one for one, _ in found} == {True, False}
    assert all(one == other for one, other in found)


def test_texts_are_tokenised_in_parts(demo_clip, monkeypatch):
    bank = texts.TextBank(demo_clip)
    every = [f"a striped texture, number {number}." for number in range(N)]
    bank.add(every)
    monkeypatch.setattr(texts, "ROWS", 4)
    assert torch.equal(bank.tokens, demo_clip.tokenizer(every).int())
