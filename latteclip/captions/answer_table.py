"""Write a table of captions or of class scores, row by row, and count what is missing in it."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from latteclip.captions.metadata import AnswersMetadata
from latteclip.captions.requests import Response
from latteclip.captions.runner import CaptionJob
from latteclip.core import tables
from latteclip.core.errors import UserError

# Columns, and the answers that they come from.
Row = tuple[dict[str, Any], Sequence[Response]]


def write_rows(
    job: CaptionJob, rows: Iterable[Row], metadata: AnswersMetadata
) -> Counter[str]:
    """Write a table in pieces, and return how many rows were asked, failed and so on.

    A row without answers was not asked about. The metadata get the engines, the date and the tokens
    of the answers. UserError: more rows lack an answer than captioner.max_failed, or all of those
    of a user's file.
    """
    count = Counter[str]()
    first_error = ""
    engines = {""}
    dates = {""}
    schema = tables.CLASS_SCORES if job.scoring else tables.CAPTIONS
    rows = iter(rows)
    with tables.writing(job.output, schema, metadata) as add:
        while piece := list(itertools.islice(rows, tables.CAPTION_ROWS)):
            for columns, answers in piece:
                count.update(_count(columns, answers))
                first_error = first_error or columns["error"] or ""
                engines |= {answer.engine for answer in answers}
                dates |= {answer.date for answer in answers}
            add(pa.Table.from_pylist([columns for columns, _ in piece], schema))
        share = 1 if job.settings.reads_file else job.settings.max_failed
        missing = count["failed"] + count["empty"]
        is_empty = job.settings.reads_file and missing == count["asked"]
        if is_empty or missing > share * count["asked"]:
            raise _too_many(job, count, first_error)
        metadata.engine = ", ".join(sorted(engines - {""}))
        metadata.date = max(dates) or None
        metadata.tokens_read, metadata.tokens_written = count["read"], count["written"]
        metadata.requests, metadata.not_asked = count["requests"], count["not_asked"]
    return count


def _count(columns: Mapping[str, Any], answers: Sequence[Response]) -> dict[str, int]:
    is_failed = columns["error"] is not None
    return {
        "asked": int(bool(answers)),
        "not_asked": int(not answers),
        "requests": sum(answer.digest is not None for answer in answers),
        "failed": int(is_failed),
        "empty": int(bool(answers) and not is_failed and columns.get("caption") == ""),
        "cut": int(columns.get("finish_reason") == "length"),
        "read": sum(answer.n_read or 0 for answer in answers),
        "written": sum(answer.n_tokens or 0 for answer in answers),
    }


def _too_many(job: CaptionJob, count: Counter[str], error: str) -> UserError:
    settings = job.settings
    first = f" (the first error: {error})" if error else ""
    if settings.reads_file:
        return UserError(
            f"{job.file_key} {job.file} has no {job.unit} for any of the {count['asked']} images "
            "or groups; add them."
        )
    return UserError(
        f"{settings.model} has no {job.unit} for {count['failed']} of {count['asked']} images or "
        f"groups{first} and empty ones for {count['empty']}, more than captioner.max_failed "
        f"({settings.max_failed:.0%}). The others are cached: run again to ask for these, allow "
        "more of them, or try another prompt, captioner.model or scores.kind."
    )
