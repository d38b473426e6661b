"""What an answer must be to be kept: of its types, not too large, and text that can be written."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from latteclip.captions.requests import DIGEST_LENGTH
from latteclip.core.settings import WORDS
from latteclip.core.terminal import one_line, printable

Fault = Callable[[Mapping[str, Any]], str | None]  # what is wrong with an answer as it is kept
CHARACTERS_PER_TOKEN = 256  # more than any token of the known vocabularies has
MOST_CHARACTERS = 2**20  # of any answer
MOST_TOKENS = 2**31 - 1  # that the tables' column holds
LONGEST_WORD = 256  # characters of what is no answer: a finish reason, the name of an engine
_DIGEST = re.compile(f"[0-9a-f]{{{DIGEST_LENGTH}}}")


def most_characters(max_new_tokens: int) -> int:
    """How long the text of so many tokens may be."""
    return min(max_new_tokens * CHARACTERS_PER_TOKEN, MOST_CHARACTERS)


def fault(kept: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer as a store keeps it; None where nothing is."""
    return (
        fault_of_digest(kept.get("digest"))
        or fault_of_answer(kept.get("text"), kept.get("finish_reason"), kept.get("n_tokens"))
        or fault_of_count(kept.get("n_read"))
        or fault_of_word(kept.get("engine"), "name of the engine")
        or fault_of_word(kept.get("date"), "date")
    )


def fault_of_answer(
    text: Any, finish_reason: Any, n_tokens: Any, longest: int = MOST_CHARACTERS
) -> str | None:
    """What is wrong with the three things that an engine says of its answer."""
    if not isinstance(text, str):
        return f"its text is {_told(text)}, not a string"
    if len(text) > longest:
        return f"its text has {len(text)} characters, more than the {longest} that it may have"
    if not can_be_written(text):
        return "its text holds half a character (a lone surrogate)"
    return fault_of_count(n_tokens) or fault_of_word(finish_reason, "finish reason")


def fault_of_count(n_tokens: Any) -> str | None:
    """What is wrong with a number of tokens, which may be unknown."""
    if n_tokens is None or _is_count(n_tokens):
        return None
    return f"its number of tokens is {_told(n_tokens)}"


def fault_of_word(word: Any, name: str) -> str | None:
    """What is wrong with a short text on one line."""
    if isinstance(word, str) and _is_short_line(word):
        return None
    return f"its {name} is {_told(word)}"


def fault_of_digest(digest: Any) -> str | None:
    """What is wrong with the digest of a request."""
    if isinstance(digest, str) and _DIGEST.fullmatch(digest):
        return None
    return f"its digest is {_told(digest)}"


def _told(value: Any) -> str:
    """A value for a message: what is short, or else what JSON calls its kind."""
    if isinstance(value, str | int):
        return one_line(ascii(value), 40)
    return WORDS.get(type(value), "of no kind that JSON has")


@functools.lru_cache(maxsize=256)  # few engines and days are named in a store
def _is_short_line(word: str) -> bool:
    return len(word) <= LONGEST_WORD and "\n" not in word and printable(word) == word


def can_be_written(text: str) -> bool:
    """Whether UTF-8 has all of its characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
