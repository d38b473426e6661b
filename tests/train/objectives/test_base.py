import pytest
import torch
from support.objectives import Case
from support.tiny import tiny_clip

from latteclip.core.errors import UserError
from latteclip.train.objectives.base import OBJECTIVES, TokenizedTexts, make_objective
from latteclip.train.objectives.flyp import Flyp
from latteclip.train.objectives.latteclip import LatteClip


def made(name, switches):
    case = Case(5, 7, 11)
    return make_objective(name, switches)(case.bank, case.texts, 3)


def test_each_name_makes_its_objective():
    kinds = {name: type(made(name, {})) for name in OBJECTIVES}
    assert kinds == {"flyp": Flyp, "flyp_supervised": Flyp, "latteclip": LatteClip}


def test_switches_and_seed_reach_latteclip():
    objective = made("latteclip", {"alpha": 0.7, "prototypes": False})
    assert (objective.switches.alpha, objective.switches.prototypes) == (0.7, False)
    assert objective.groups.generator.initial_seed() == 3


@pytest.mark.parametrize(
    ("switches", "key"),
    [
        ({"alhpa": 0.1}, r"switches\.alhpa"),
        ({"alpha": "0.1"}, r"switches\.alpha"),
    ],
)
def test_switches_that_do_not_fit_are_refused_before_anything_is_made(switches, key):
    with pytest.raises(UserError, match=key):
        make_objective("latteclip", switches)


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
