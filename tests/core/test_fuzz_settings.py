import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st
from support.fuzz import check, damaged, fuzzed

from latteclip.core.settings import from_json, list_from_json


@dataclass(frozen=True)
class Inner:
    lr: float
    file: str | None = None


@dataclass(frozen=True)
class Settings:
    size: int
    kind: Literal["step", "epoch"] = "step"
    inner: Inner = Inner(0.1)
    parts: list[Inner] = field(default_factory=list)
    named: dict[str, Inner | str] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


WHOLE = {
    "size": 3,
    "kind": "epoch",
    "inner": {"lr": 1e-3, "file": "é/x.csv"},
    "parts": [{"lr": 2}],
    "named": {"a": {"lr": 0.5}, "b": "c"},
    "anything": {"x": [1, None, "\n"]},
}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def usable(settings):
    """The settings as what a stage does with them: counts, calculates, writes."""
    values = asdict(settings)
    json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    assert type(values["size"]) is int and math.isfinite(float(values["inner"]["lr"]))
    return values


@fuzzed(content=damaged(json.dumps(WHOLE).encode()))
def test_damaged_settings_are_settings_or_one_sentence(content):
    text = content.decode(errors="surrogateescape")  # as of the command line
    check("stage settings", lambda: usable(from_json(Settings, text)))


@fuzzed(key=st.sampled_from(sorted(WHOLE)), value=JSON)
def test_settings_with_any_value_are_settings_or_one_sentence(key, value):
    text = json.dumps({**WHOLE, key: value})
    check("stage settings", lambda: usable(from_json(Settings, text)))


@fuzzed(content=damaged(json.dumps([WHOLE, WHOLE]).encode()))
def test_a_damaged_list_of_settings_is_one_or_one_sentence(content):
    text = content.decode(errors="surrogateescape")
    check("list of settings", lambda: [*map(usable, list_from_json(Settings, text, "parts"))])
