import torch
from support.objectives import Case
from support.tiny import tiny_clip

from latteclip.config.keys import SwitchesSection
from latteclip.train.objectives.base import TokenizedTexts, make_objective
from latteclip.train.objectives.flyp import Flyp
from latteclip.train.objectives.latteclip import LatteClip


def test_each_name_makes_its_objective():
    case = Case(5, 7, 11)
    for name, kind in {"flyp": Flyp, "latteclip": LatteClip}.items():
        assert type(make_objective(name, case.texts, SwitchesSection(), 3)) is kind


TEXTS = ["red dots", "a woven thing", "red dots", "x"]


def test_a_text_has_one_id_whenever_it_is_added():
    bank = TokenizedTexts(tiny_clip())
    first = bank.add(TEXTS)
    assert first.tolist() == [0, 1, 0, 2]
    assert bank.add(["x", "new"]).tolist() == [2, 3]
    assert len(bank.tokens) == 4


def test_each_distinct_text_is_encoded_once(monkeypatch):
    bank = TokenizedTexts(tiny_clip())
    ids = bank.add(TEXTS)
    seen = []

    def encode(clip, tokens):
        seen.append(tokens)
        return tokens.float()

    monkeypatch.setattr("latteclip.clip.encode.encode_texts", encode)
    features = bank.encode(ids)
    assert [len(tokens) for tokens in seen] == [3]
    assert torch.equal(features, bank.tokens[ids].float())
