"""Text for terminals and logs: without control characters and secrets, in colour, and progress."""

import base64
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from typing import TextIO
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


CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}
log = logging.getLogger(__name__)


def printable(text: str) -> str:
    """The text with its control characters spelt out as Python spells them."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def redacted(text: str) -> str:
    """The text without the secrets of the environment, and without logins in URLs and headers."""
    for secret in _secrets(SHORTEST):
        text = text.replace(secret, "***")
    return _LOGIN.sub(r"\1***@", _BEARER.sub(r"\1***", text))


def for_terminal(text: str) -> str:
    """The text as it may reach a terminal or a log."""
    return printable(redacted(text))


def one_line(said: object, longest: int = LONGEST) -> str:
    """What somebody said, an error say, as a part of a sentence: one line, shown, not too long."""
    line = " ".join(for_terminal(str(said)).split())
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


def _has_colours(stream: TextIO) -> bool:
    """Whether text on `stream` may have colours."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """`text` in a colour of CODES where `stream` may have it, else as it is."""
    return f"\033[{CODES[colour]}m{text}\033[0m" if _has_colours(stream) else text


class Progress:
    """Counts finished items and logs a bar with rate and time left, at most every few seconds.

    Each time a line of its own, not a bar that redraws itself: the jobs of one Snakemake run share
    the terminal, and the same line must read well in a log file.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        every: float = 5.0,
        *,
        done: int = 0,
        scale: bool = False,
    ) -> None:
        """Start the clock.

        Args:
            total: items in all; None where it is not known.
            unit: what is counted.
            every: seconds between two lines.
            done: items of an earlier run: they count, but not towards the rate.
            scale: write 1.2M for 1200000.
        """
        self.total, self.unit, self.every = total, unit, every
        self.done = self.initial = done
        self.scale = scale
        self.started = self.logged = time.monotonic()

    def restart(self) -> None:
        """Start the clock anew, after a preparation that says nothing about the rate."""
        self.started = self.logged = time.monotonic()

    def held(self, n: int) -> None:
        """Count `n` items that an earlier run finished, but not towards the rate."""
        self.done += n
        self.initial += n

    def add(self, n: int, note: str = "") -> None:
        """Count `n` more items; `note` is appended to the line when one is due."""
        self.done += n
        now = time.monotonic()
        if now - self.logged >= self.every or (
            self.done == self.total and self.logged > self.started
        ):
            self.logged = now
            from tqdm import tqdm

            meter = tqdm.format_meter(
                self.done,
                self.total,
                now - self.started,
                ncols=90,
                unit=self.unit if self.scale else f" {self.unit}",
                unit_scale=self.scale,
                initial=self.initial,
            )
            log.info("%s %s", meter, note)
