"""Write a table of captions or of class scores, row by row, and count what is missing in it."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latteclip.captions.engine import Response
from latteclip.captions.pictures import Layout
from latteclip.captions.runner import CaptionJob
from latteclip.config.keys import GroupsSection
from latteclip.core import tables
from latteclip.core.errors import UserError


@dataclass(kw_only=True)
class AnswersMetadata:
    """Who answered, and what that took."""

    model: str | None = None  # None: the user's file
    revision: str | None = None
    file: str | None = None  # None: a model
    engine: str = ""  # names and versions, separated by commas
    date: str | None = None  # date of the last answer
    tokens_read: int = 0
    tokens_written: int = 0
    requests: int = 0
    not_asked: int = 0  # images or groups that `max_images` leaves out

    @property
    def in_words(self) -> str:
        """What was asked, in words."""
        tokens = f"{self.tokens_read:,} tokens read, {self.tokens_written:,} written"
        left = f", {self.not_asked:,} images left out" if self.not_asked else ""
        return f"{self.requests:,} requests to {self.model}, {tokens}{left}"


@dataclass(kw_only=True)
class CaptionsMetadata(AnswersMetadata):
    """The metadata of CAPTIONS."""

    prompt: str
    layout: Layout  # layout of an image
    groups: GroupsSection | None = None  # None: the captions are of images


@dataclass(kw_only=True)
class ScoresMetadata(AnswersMetadata):
    """The metadata of CLASS_SCORES."""

    classnames: list[str]
    kind: str  # value of scores.kind
    prompt: str
    answer: str | None  # template of the answers whose likelihood is asked for
    topk: int


log = logging.getLogger(__name__)
# Columns, and the answers that they come from.
Row = tuple[dict[str, Any], Sequence[Response]]


def write_rows(job: CaptionJob, rows: Iterable[Row], metadata: AnswersMetadata) -> None:
    """Write a table in pieces.

    A row without answers was not asked about. The metadata get who answered, the date and the
    tokens of the answers. UserError: more rows lack an answer than captioner.max_failed, or all of
    those of a user's file.
    """
    settings = job.settings
    count = Counter[str]()
    errors: list[str] = []
    engines, dates = {""}, {""}
    schema = tables.CLASS_SCORES if job.scoring else tables.CAPTIONS
    rows = iter(rows)
    with tables.writing(job.output, schema, metadata) as add:
        while piece := list(itertools.islice(rows, tables.CAPTION_ROWS)):
            for columns, answers in piece:
                errors += filter(None, [columns["error"]])
                is_answered = bool(answers) and columns["error"] is None
                count.update(
                    asked=bool(answers),
                    not_asked=not answers,
                    requests=sum(answer.digest is not None for answer in answers),
                    empty=is_answered and columns.get("caption") == "",
                    cut=columns.get("finish_reason") == "length",
                    read=sum(answer.n_read or 0 for answer in answers),
                    written=sum(answer.n_tokens or 0 for answer in answers),
                )
                engines |= {answer.engine for answer in answers}
                dates |= {answer.date for answer in answers}
            add(pa.Table.from_pylist([columns for columns, _ in piece], schema))
        missing = len(errors) + count["empty"]
        if settings.reads_file:
            metadata.file = job.file
            if missing == count["asked"]:
                raise UserError(
                    f"{job.file_key} {job.file} has no {job.unit} for any of the {missing} images "
                    "or groups; add them."
                )
        else:
            metadata.model, metadata.revision = settings.model, settings.revision
            if missing > settings.max_failed * count["asked"]:
                raise UserError(
                    f"{settings.model} has no {job.unit} for {len(errors)} of {count['asked']} "
                    f"images or groups {errors[:1]} and empty ones for {count['empty']}, more than "
                    f"captioner.max_failed ({settings.max_failed:.0%}). The others are cached: run "
                    "again to ask for these, allow more of them, or try another prompt, "
                    "captioner.model or scores.kind."
                )
        metadata.engine = ", ".join(sorted(engines - {""}))
        metadata.date = max(dates) or None
        metadata.tokens_read, metadata.tokens_written = count["read"], count["written"]
        metadata.requests, metadata.not_asked = count["requests"], count["not_asked"]
    log.info(
        "Wrote %s for %d images or groups: %d without an answer, %d empty, %d cut, %d not asked.",
        job.unit,
        count["asked"],
        len(errors),
        *(count[name] for name in ("empty", "cut", "not_asked")),
    )
