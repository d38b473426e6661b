"""What may become of a file: bytes flipped, cut, lost, filled with zeros, or put in."""

import copy
import json

from hypothesis import strategies as st

NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-9, 9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["/etc/passwd", "../..", "hf-hub:me/model", "local-dir:/tmp", "\x00"]),
)


@st.composite
def damaged(draw, whole):
    """Bytes that differ from `whole` in one place."""
    kind = draw(st.sampled_from(["flip", "cut", "lose", "zero", "insert"]))
    start = draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        flipped = whole[start] ^ 1 << draw(st.integers(0, 7))
        return whole[:start] + bytes([flipped]) + whole[start + 1 :]
    if kind == "cut":
        return whole[:start]
    length = draw(st.integers(1, 64))
    if kind == "lose":
        return whole[:start] + whole[start + length :]
    if kind == "zero":
        return (whole[:start] + bytes(length) + whole[start + length :])[: len(whole)]
    return whole[:start] + draw(st.binary(min_size=1, max_size=64)) + whole[start:]


@st.composite
def twisted(draw, text):
    """A JSON text in which one value is another one, missing, or has company."""
    values = json.loads(text)
    changed = copy.deepcopy(values)
    places = list(_places(changed))
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        holder[key] = draw(NASTY)
    elif how == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=12))] = draw(NASTY)
    else:
        holder.append(draw(NASTY))
    return json.dumps(changed)


def _places(value):
    """(object or list, key) of every value inside."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
