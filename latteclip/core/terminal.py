"""Text for terminals and logs: without control characters and secrets, and progress."""

import logging
import os
import re
import time
from typing import Any

# Variables of the environment: the addresses of servers, and the keys that they ask for.
URL = "OPENAI_BASE_URL"
KEY = "OPENAI_API_KEY"
DECISIONS_URL = "DECISIONS_BASE_URL"
DECISIONS_KEY = "DECISIONS_API_KEY"
SECRETS = (KEY, DECISIONS_KEY, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
MIN_SECRET = 4  # characters; a shorter one may be a word
MAX_LINE = 300  # characters of a text in a message
# What a terminal obeys or reorders by, but tabs and line breaks, and halves of characters.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LOGIN = re.compile(
    r"(\b(?:Bearer|Basic)\s+)[^\s\"',;}\]]+|(://)[^\s/@\"']+(?=@)", re.I
)
SHORTEST, LONGEST = 10.0, 300.0  # seconds between two lines of Progress
# A variable of the environment: of what jobs of a run log, the terminal gets warnings, errors and
# messages with FOR_RUN.
SHORT = "LATTECLIP_SHORT"
FOR_RUN = {"is_for_run": True}
log = logging.getLogger(__name__)


def decisions_address(url: str) -> str:
    """Return where the API of a decision model begins, which users give with or without /v1."""
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"


def printable(text: str) -> str:
    """Return a text with its control characters spelt out as Python spells them."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def for_terminal(text: str) -> str:
    """Return a text without control characters, secrets of the environment, and logins."""
    for secret in (os.environ.get(name, "").strip() for name in SECRETS):
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, "***")
    return printable(_LOGIN.sub(r"\1\2***", text))


def one_line(value: object, longest: int = MAX_LINE) -> str:
    """Return a value, an error say, as a part of a sentence: one line for terminals, shortened."""
    line = " ".join(for_terminal(str(value)).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def counted(n: int, thing: str, things: str = "") -> str:
    """Return a number of things in words: "1 image", "1,200 images"."""
    return f"{n:,} {thing if n == 1 else things or f'{thing}s'}"


# In the log of a job: the seconds of its work, without those of loading.
WORK = re.compile(r" in ([\d.]+) s of work\.")


def log_work(
    log: logging.Logger, did: str, seconds: float, note: str = "", **options: Any
) -> None:
    """Log what a job did, with the seconds that `WORK` finds, and a note."""
    line = f"{did} in {seconds:.1f} s of work. {note}"
    log.info("%s", line.rstrip(), **options)


class Progress:
    """Counts finished items, and logs lines with the rate and the time left, ever less often.

    Jobs of a run share the terminal, and log files get the same lines: no bar redraws itself. Items
    that an earlier run has `done` do not count towards the rate.
    """

    def __init__(self, total: int | None, unit: str, *, done: int = 0) -> None:
        self.total = total
        self.unit = unit
        self.done = self.initial = done
        self.started = time.monotonic()
        self.due = SHORTEST  # seconds after the start

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    def skip(self, n: int) -> None:
        """Count `n` items that an earlier run finished, but not towards the rate."""
        self.done += n
        self.initial += n

    def add(self, n: int, note: str = "") -> None:
        """Count `n` more items. `note` is appended to the line when one is due."""
        self.done += n
        elapsed = self.seconds
        if elapsed < self.due:
            return
        from tqdm import tqdm  # here: --help does without

        self.due = elapsed + min(LONGEST, elapsed)
        meter = tqdm.format_meter(
            self.done,
            self.total,
            elapsed,
            ncols=90,
            unit=f" {self.unit}",
            unit_scale=True,
            initial=self.initial,
        )
        log.info("%s %s", meter, note, extra=FOR_RUN)
