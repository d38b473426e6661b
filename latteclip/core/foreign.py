"""Text from outside, as a message, a table or a terminal may show it.

Such is what a server replies, an error of a library that repeats it, a file's name, a caption.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
SECRETS = (KEY, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # variables of the environment
SHORTEST = 4  # characters of a secret that is looked for in messages
SHORTEST_IN_TEXT = 8  # in what a model wrote, where a shorter one may be a word
LONGEST = 300  # characters of a text in a message
# What a terminal obeys or reorders instead of showing it, and halves of characters; but no tabs and
# line breaks.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BEARER = re.compile(r"(\bBearer\s+)[^\s\"',;}\]]+", re.I)
_LOGIN = re.compile(r"(://)[^\s/@\"']+@")


def printable(text: str) -> str:
    """The text with its control characters spelt out as Python spells them."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def redacted(text: str) -> str:
    """The text without the secrets of the environment, and without logins in URLs and headers."""
    for secret in _secrets(SHORTEST):
        text = text.replace(secret, "***")
    return _LOGIN.sub(r"\1***@", _BEARER.sub(r"\1***", text))


def shown(text: str) -> str:
    """The text as it may reach a terminal or a log."""
    return printable(redacted(text))


def in_short(said: object, longest: int = LONGEST) -> str:
    """What somebody said, an error say, as a part of a sentence: one line, shown, not too long."""
    line = " ".join(shown(str(said)).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def holds_secret(text: str) -> bool:
    """Whether a text repeats a secret of the environment."""
    return any(secret in text for secret in _secrets(SHORTEST_IN_TEXT))


def _secrets(shortest: int) -> list[str]:
    """The secrets of the environment in the ways in which they are written, the longest first."""
    found = {way for secret in _plain_secrets() for way in _ways(secret) if len(secret) >= shortest}
    return sorted(found, key=len, reverse=True)


def _plain_secrets() -> Iterator[str]:
    for name in SECRETS:
        yield os.environ.get(name, "").strip()
    login, at, _ = os.environ.get(URL, "").rpartition("@")
    if at:
        user, _, password = login.rpartition("//")[2].partition(":")
        yield unquote(password)
        plain = f"{unquote(user)}:{unquote(password)}"
        yield base64.b64encode(plain.encode(errors="surrogateescape")).decode()


def _ways(secret: str) -> tuple[str, ...]:
    """A secret as it is, in a URL, and in JSON."""
    return secret, quote(secret, safe="", errors="surrogateescape"), json.dumps(secret)[1:-1]
