"""From what became of each row to the table CAPTIONS.

Letters: R rows of the table.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from latteclip import __version__
from latteclip.captions.answers import RowOutcome, Tokens
from latteclip.captions.engines.base import OWN, CaptionerSettings
from latteclip.captions.requests import AGAIN, Questions
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]
# The code that decides a caption: files of the package, and folders with all below them.
DECISIVE = ("captions", "core/hashing.py", "core/class_templates.py", "data/images.py")


class Outcome(Protocol):
    """What became of a row of a table of captions, or of scores."""

    @property
    def engine(self) -> str:
        """Who answered; empty where nobody did."""

    @property
    def date(self) -> str | None:
        """When."""

    @property
    def error(self) -> str | None:
        """Why nobody did, though somebody was asked."""

    @property
    def tokens(self) -> Tokens:
        """What it took to answer."""


@dataclass
class Sources:
    """Where the R outcomes of a table come from."""

    engines: set[str] = field(default_factory=set)
    last_date: str = ""
    first_error: str = ""
    read: int = 0  # tokens
    written: int = 0

    def note(self, outcome: Outcome) -> None:
        """Count one of them."""
        self.engines.add(outcome.engine)
        self.last_date = max(self.last_date, outcome.date or "")
        self.first_error = self.first_error or outcome.error or ""
        self.read += outcome.tokens.read
        self.written += outcome.tokens.written

    @property
    def metadata(self) -> dict[str, Any]:
        """Of the table."""
        return {
            "engine": ", ".join(sorted(self.engines - {""})),
            "date": self.last_date or None,
            "code": code_version(),
            "tokens_read": self.read,
            "tokens_written": self.written,
        }


@dataclass
class _Tally(Sources):
    """What the R outcomes of a table have in common."""

    count: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: RowOutcome) -> None:
        self.note(outcome)
        self.count["failed"] += outcome.error is not None
        self.count["empty"] += outcome.error is None and not outcome.caption
        self.count["cut"] += outcome.finish_reason == "length"


def write_captions(
    questions: Questions,
    outcomes: Callable[[int], RowOutcome],
    settings: CaptionerSettings,
    about: Mapping[str, Any],
    output: str,
) -> None:
    """Write CAPTIONS, a piece at a time; hold the outcomes of one piece, and ask again for others.

    Args:
        questions: the R rows.
        outcomes: what became of a row.
        settings: of the captioner.
        about: further metadata: how the captions came about.
        output: the file.

    Raises:
        UserError: too many rows have no caption.
    """
    outcomes = functools.lru_cache(tables.CAPTION_ROWS)(outcomes)
    tally = _Tally()
    for row in range(len(questions)):
        tally.add(outcomes(row))
    _check(len(questions), tally.count, tally.first_error, settings)
    with tables.writing(
        output, tables.CAPTIONS, {**about, **tally.metadata, "retry_prompt": AGAIN}
    ) as add:
        for start in range(0, max(1, len(questions)), tables.CAPTION_ROWS):
            rows = range(start, min(start + tables.CAPTION_ROWS, len(questions)))
            add(_columns(questions, rows, [outcomes(row) for row in rows]))
    log.info(
        "Wrote %d captions, %d empty, %d without an answer, %d cut at %d tokens.",
        len(questions),
        tally.count["empty"],
        tally.count["failed"],
        tally.count["cut"],
        settings.max_new_tokens,
    )


def _check(n: int, count: Mapping[str, int], error: str, settings: CaptionerSettings) -> None:
    without = count["empty"] + count["failed"]
    if without <= settings.max_failed * n:
        return
    if settings.engine == OWN:
        first = f" (the first: {error})" if error else ""
        raise UserError(
            f"Your file lacks the captions of {without} of {n} images or groups{first}, more than "
            f"captioner.max_failed ({settings.max_failed:.0%}); see captioner.images_file and "
            "captioner.groups_file."
        )
    reason = f" (the first error: {error})" if error else ""
    raise UserError(
        f"{settings.model} wrote nothing for {count['empty']} of {n} pictures and did not "
        f"answer for {count['failed']}{reason}, more than captioner.max_failed "
        f"({settings.max_failed:.0%}); try another prompt or captioner.model, or rerun: what "
        "was answered is not asked again."
    )


def _columns(
    questions: Questions, rows: Sequence[int], outcomes: Sequence[RowOutcome]
) -> dict[str, Any]:
    ids = questions.image_ids
    return {
        "id": [questions.ids[row] for row in rows],
        "members": [[ids[int(i)].as_py() for i in questions.members[row]] for row in rows],
        "pseudo_label": pa.array(
            [None if questions.labels is None else questions.labels[row] for row in rows],
            pa.int32(),
        ),
        "prompt": [questions.prompts(row) for row in rows],
        "caption": [outcome.caption for outcome in outcomes],
        "finish_reason": [outcome.finish_reason for outcome in outcomes],
        "n_tokens": pa.array([outcome.n_tokens for outcome in outcomes], pa.int32()),
        "attempts": pa.array([outcome.attempts for outcome in outcomes], pa.int8()),
        "error": pa.array([outcome.error for outcome in outcomes], pa.string()),
        "digest": pa.array([outcome.digest for outcome in outcomes], pa.string()),
    }


def code_version(package: Path = PACKAGE) -> str:
    """The package's version and a digest of the code that decides captions, see DECISIVE.

    Every file counts with its path below the package, in the order of these paths.
    """
    files = [file for name in DECISIVE for file in _python_files(package / name)]
    parts: list[str | bytes] = []
    for file in sorted(files):
        parts += [file.relative_to(package).as_posix(), file.read_bytes()]
    return f"latteclip {__version__} ({digest(*parts)[:12]})"


def _python_files(path: Path) -> list[Path]:
    return list(path.rglob("*.py")) if path.is_dir() else [path]
