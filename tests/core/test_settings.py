from dataclasses import dataclass, field

import pytest

from latteclip.core.errors import UserError
from latteclip.core.settings import from_json


@dataclass(frozen=True)
class Example:
    name: str
    size: int
    ratio: float = 0.5
    extras: dict = field(default_factory=dict)


def test_settings_come_from_json_with_defaults():
    assert from_json(Example, '{"size": 3, "name": "x"}') == Example("x", 3, 0.5, {})
    assert from_json(Example, '{"size": 3, "name": "x", "ratio": 2}').ratio == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{size: 3}", "Example are not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"name": "x", "size": 1, "sise": 2}', r"do not know \['sise'\]; known keys: .*size"),
        ('{"name": "x"}', r"lack the keys \['size'\]"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(UserError, match=message):
        from_json(Example, text)
