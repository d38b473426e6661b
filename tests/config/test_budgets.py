"""What each job that asks may cost, by its own limit and by that of all."""

import pytest

from latteclip.config import checks, stage_params
from latteclip.config.budgets import Asking, askings, equal_parts, max_cost
from latteclip.core.errors import UserError

SERVER = {"engine": "openai", "model": "m", "captioner": {"price_input": 0.3}}
VOTERS = [
    {"name": "words", "kind": "captions"},
    {"name": "a", "kind": "multiple_choice", **SERVER},
    {"name": "b", "kind": "captions", "max_cost": 0.1, **SERVER},
    {"name": "c", "kind": "decisions", "model": "m", "scores": {"max_cost": 0.9}},
    {"name": "mine", "kind": "file", "file": "mine.csv"},
]
ALONE = {"voters": VOTERS, "method": "zero_shot,image_prototypes"}


@pytest.fixture(autouse=True)
def addresses(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").touch()
    for name in ("OPENAI_BASE_URL", "DECISIONS_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def limits(found):
    return {
        one.voter or one.kind: max_cost(found, "demo", one)
        for one in askings(found, "demo")
    }


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([None, None], [5, 5]),
        ([None, 2, None], [4, 2, 4]),
        ([1, 2], [1, 2]),
        ([3, None, None, 2.4], [2.5 + 0.1 / 3] * 3 + [2.4]),
        ([9, None], [5, 5]),
    ],
)
def test_parts_are_equal_up_to_a_limit_that_leaves_more_to_others(given, parts):
    names = [Asking("images", str(number)) for number in range(len(given))]
    found = equal_parts(10, dict(zip(names, given, strict=True)))
    assert [found[name] for name in names] == pytest.approx(parts)


def test_without_a_limit_of_all_each_has_its_own(configured):
    assert limits(configured(**ALONE)) == {"images": None, "a": None, "b": 0.1, "c": 0.9}
    checks.refuse_unready(configured(**ALONE))


def test_money_is_divided_among_those_that_may_cost_some(configured):
    found = configured(**ALONE, max_cost=0.9)
    checks.refuse_unready(found)
    # The demo's captioner runs here and has no price.
    assert limits(found) == pytest.approx({"images": None, "a": 0.4, "b": 0.1, "c": 0.4})
    assert stage_params.scores(found, "demo", "a")["max_cost"] == pytest.approx(0.4)
    writer = stage_params.caption_writer(found, "demo", "images", "b")
    assert writer["max_cost"] == 0.1
    assert stage_params.captioner(found, "demo", "b")["max_cost"] is None


def test_tokens_are_divided_among_all_that_ask(configured):
    voters = [VOTERS[0], VOTERS[1]]
    found = configured(voters=voters, method="latteclip", max_cost="1000 tokens")
    assert limits(found) == {
        "images": "333 tokens",
        "groups": "333 tokens",
        "a": "333 tokens",
    }


def test_rounds_have_growing_parts_of_the_part(configured):
    scores = {"kind": "likelihood", "choose": "gain", "rounds": 3}
    given = {"method": "image_prototypes", "max_cost": "900 tokens"}
    found = configured(scores=scores, **given)
    costs = [stage_params.scores(found, "demo", number=n)["max_cost"] for n in "123"]
    assert costs == ["300 tokens", "600 tokens", "900 tokens"]


def test_the_limit_of_captions_reruns_no_class_scores(configured):
    scored = {"scores": {"kind": "likelihood"}}
    before = configured(**scored)
    after = configured(captioner={"max_cost": "9 tokens"}, **scored)
    assert stage_params.captioner(before, "demo") == stage_params.captioner(after, "demo")
    limit = stage_params.caption_writer(after, "demo", "groups")["max_cost"]
    assert limit == "9 tokens"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**ALONE, "max_cost": "90 tokens"}, r"voter b, captioner\.max_cost .*unit"),
        (
            {"voters": [{**VOTERS[1], "captioner": {}}], "max_cost": 0.5},
            r"voter a, max_cost 0\.5 is money",
        ),
        (
            {"voters": [{**VOTERS[1], "captioner": {"max_cost": 0.5}}]},
            r"voter a, captioner\.max_cost is for captions",
        ),
        ({"captioner": {"max_cost": 0.5}}, r"captioner\.max_cost 0\.5 is money"),
    ],
)
def test_limits_that_cannot_hold_are_refused(configured, given, message):
    with pytest.raises(UserError, match=message):
        checks.refuse_unready(configured(**given))


@pytest.mark.parametrize("value", [0, -1, "0 tokens", "2 days", "cheap", True])
@pytest.mark.parametrize("where", ["max_cost", "captioner.max_cost", "voters.0.max_cost"])
def test_a_budget_that_is_none_is_one_sentence(configured, where, value):
    given = {
        "max_cost": {"max_cost": value},
        "captioner.max_cost": {"captioner": {"max_cost": value}},
        "voters.0.max_cost": {"voters": [{**VOTERS[0], "max_cost": value}]},
    }[where]
    with pytest.raises(UserError, match=rf"key {where} .* must "):
        configured(**given)
