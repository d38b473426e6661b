"""Values as JSON has them, within bounds: what a configuration and the settings of stages may hold.

YAML and Python's JSON know more: dates, NaN, keys that are numbers, half characters, no end of it.
"""

import datetime
import re
from collections.abc import Mapping
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line, printable

MOST = 2**20  # values, those that YAML's aliases repeat included
DEEPEST = 32  # keys and lists inside each other
LONGEST_KEY = 1000  # characters
INTEGERS = 2**63  # whole numbers are smaller, in either direction
KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    datetime.date: "a date",
    datetime.datetime: "a date",
    bytes: "binary data",
}
# What no path, name or prompt may hold: control characters, and halves of characters.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def refuse_unfit(content: Any, what: str) -> None:
    """Refuse values and keys that JSON does not have, and more of them than anyone writes.

    Args:
        content: of a configuration, nested.
        what: its name in messages.

    Raises:
        UserError: names the first of them.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(MOST):
        if not waiting:
            return
        place, value = waiting.pop()
        if len(place) > DEEPEST:
            raise UserError(f"{what} holds more than {DEEPEST} keys inside each other.")
        if isinstance(value, Mapping):
            _refuse_keys(value, place, what)
            waiting += [((*place, key), value[key]) for key in reversed(value)]
        elif isinstance(value, list):
            waiting += [((*place, str(n)), item) for n, item in enumerate(value)]
        elif fault := _fault_of(value):
            raise UserError(f"{what}: {'.'.join(place)} {fault}.")
    raise UserError(f"{what} holds more than {MOST} values; shorten it.")


def _refuse_keys(section: Mapping[Any, Any], place: tuple[str, ...], what: str) -> None:
    where = f" of {'.'.join(place)}" if place else ""
    for key in section:
        if not isinstance(key, str):
            name = "null" if key is None else one_line(key)
            raise UserError(
                f"{what}: the key {name}{where} is {_kind(key)}, not text; put it in quotes."
            )
        if not 0 < len(key) <= LONGEST_KEY or printable(key) != key or "\n" in key:
            raise UserError(
                f"{what}: the key {one_line(repr(key), 80)}{where} is empty, too long, or holds a "
                "character that no name has; correct it."
            )


def _kind(value: object) -> str:
    return KINDS.get(type(value), "not a single value")


def _fault_of(value: object) -> str | None:
    """What is wrong with a single value, for a message after its key; None: nothing."""
    if isinstance(value, str):
        return _fault_of_text(value)
    if isinstance(value, int) and not -INTEGERS < value < INTEGERS:
        return "is too large a whole number"
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return f"is {value}, which is not a number to calculate with"
    if value is None or isinstance(value, (bool, int, float)):
        return None
    return f"is {_kind(value)}, {one_line(value, 80)}; put it in quotes if it is meant as text"


def _fault_of_text(text: str) -> str | None:
    """What is wrong with a text that becomes a name, a path or a prompt; None: nothing."""
    found = _UNFIT.search(text)
    if found is None:
        return None
    return (
        f"holds the character {found[0]!a}, which is a control character or not valid UTF-8; "
        "leave it out"
    )
