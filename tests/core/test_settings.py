from dataclasses import dataclass, field
from typing import Literal

import pytest

from latteclip.core.errors import UserError
from latteclip.core.settings import from_json, from_values, list_from_json


@dataclass(frozen=True)
class Inner:
    lr: float
    epochs: int = 1


@dataclass(frozen=True)
class Example:
    size: int
    ratio: float = 0.5
    inner: Inner = Inner(0.1)
    parts: list[Inner] = field(default_factory=list)
    kind: Literal["step", "epoch"] = "step"


def example(**values):
    return from_values(Example, {"size": 3, **values})


def test_settings_come_from_json_with_what_their_annotations_name():
    assert from_json(Example, '{"size": 3, "ratio": 2}') == Example(3, 2.0)
    assert list_from_json(Inner, '[{"lr": 1}, {"lr": 2}]') == [Inner(1), Inner(2)]
    assert example(parts=[{"lr": 0.5}, {"lr": 1, "epochs": 4}]).parts == [Inner(0.5), Inner(1, 4)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sise": 2}, "sise"),
        ({"inner": {"lr": 1, "epoch": 2}}, r"inner\.epoch"),
        ({"inner": {}}, r"inner\.lr"),
        ({"parts": [{"lr": 1}, {"lr": None}]}, r"parts\.1\.lr"),
        ({"size": True}, "size"),
        ({"kind": "never"}, "kind"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_named_with_their_section(values, message):
    with pytest.raises(UserError, match=message):
        example(**values)
