from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from latteclip.core.errors import UserError
from latteclip.core.settings import from_json, from_values


@dataclass(frozen=True)
class Inner:
    lr: float
    epochs: int = 1


@dataclass(frozen=True)
class Example:
    name: str
    size: int
    ratio: float = 0.5
    extras: dict = field(default_factory=dict)
    inner: Inner = Inner(0.1)
    parts: list[Inner] = field(default_factory=list)
    named: dict[str, Inner | str] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    side: int | None = None
    kind: Literal["step", "epoch"] = "step"
    quick: bool = False


def example(**values):
    return from_values(Example, {"name": "x", "size": 3, **values})


def test_settings_come_from_json_with_defaults():
    assert from_json(Example, '{"size": 3, "name": "x"}') == Example("x", 3, 0.5, {})
    assert from_json(Example, '{"size": 3, "name": "x", "ratio": 2}').ratio == 2


def test_sections_inside_become_what_their_annotations_name():
    assert example(inner={"lr": 2}).inner == Inner(2)
    assert example(parts=[{"lr": 0.5}, {"lr": 1, "epochs": 4}]).parts == [Inner(0.5), Inner(1, 4)]
    assert example(named={"a": {"lr": 0.5}, "b": "c"}).named == {"a": Inner(0.5), "b": "c"}
    assert example(anything={"a": [1, None]}).anything == {"a": [1, None]}
    assert example(side=None, kind="epoch", quick=True) == Example("x", 3, kind="epoch", quick=True)


def test_a_whole_number_stays_one_where_any_number_may_be():
    assert isinstance(example(ratio=2).ratio, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{size: 3}", "Example are not valid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"name": "x", "size": 1, "sise": 2}', "do not know 'sise'; did you mean size"),
        ('{"name": "x", "size": 1, "zzz": 2}', "do not know 'zzz'; known are: .*ratio, side, size"),
        ('{"name": "x"}', r"lack the keys \['size'\]"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(UserError, match=message):
        from_json(Example, text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"lr": 1, "epoch": 2}}, r"do not know 'inner\.epoch'; did you mean epochs\?"),
        ({"inner": {}}, r"lack the keys \['inner\.lr'\]"),
        ({"inner": {"lr": "0.1"}}, r"Example: inner\.lr must be a number, not '0\.1'"),
        ({"inner": 3}, "inner must be an object, not 3"),
        ({"parts": [{"lr": 1}, {"lr": None}]}, r"parts\.1\.lr must be a number, not None"),
        ({"named": {"a": 3}}, r"named\.a must be an object or a string, not 3"),
        ({"size": 2.5}, "size must be a whole number, not 2.5"),
        ({"size": True}, "size must be a whole number, not True"),
        ({"quick": 1}, "quick must be true or false, not 1"),
        ({"side": "3"}, "side must be a whole number or null, not '3'"),
        ({"kind": "never"}, "kind must be 'step' or 'epoch', not 'never'"),
        ({"name": None}, "name must be a string, not None"),
        ({"parts": {}}, r"parts must be a list, not \{\}"),
    ],
)
def test_values_that_do_not_fit_are_named_with_their_section(values, message):
    with pytest.raises(UserError, match=message):
        example(**values)


def test_a_section_that_is_built_alone_is_named_as_well():
    with pytest.raises(UserError, match=r"Inner do not know 'method\.finetune\.lrr'"):
        from_values(Inner, {"lrr": 1}, "method.finetune")
