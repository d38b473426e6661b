"""From what became of each image to the table CLASS_SCORES.

Letters: R images of the table.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latteclip.captions.class_questions import ClassQuestions, RowScores
from latteclip.captions.engines.base import OWN, CaptionerSettings
from latteclip.captions.write import Sources
from latteclip.core import tables
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class _Tally(Sources):
    """What the R images of a table have in common."""

    scored: int = 0
    failed: int = 0

    def add(self, row: RowScores) -> None:
        self.note(row)
        self.scored += bool(row.options)
        self.failed += row.error is not None


def write_scores(
    questions: ClassQuestions,
    outcomes: Callable[[int], RowScores],
    settings: CaptionerSettings,
    about: Mapping[str, Any],
    output: str,
) -> None:
    """Write CLASS_SCORES, a piece at a time; ask twice for each outcome and hold none.

    Args:
        questions: about the R images.
        outcomes: what became of an image.
        settings: of the captioner.
        about: further metadata: how the scores came about.
        output: the file.

    Raises:
        UserError: too many images have no scores.
    """
    tally, n = _Tally(), len(questions.images)
    for row in range(n):
        tally.add(outcomes(row))
    _check(tally, settings)
    with tables.writing(output, tables.CLASS_SCORES, {**about, **tally.metadata}) as add:
        for start in range(0, max(1, n), tables.CAPTION_ROWS):
            rows = range(start, min(start + tables.CAPTION_ROWS, n))
            ids = [questions.images.ids[row] for row in rows]
            add(_columns(ids, [outcomes(row) for row in rows]))
    log.info(
        "Wrote the scores of %d images, %d without an answer, %d not asked about.",
        tally.scored,
        tally.failed,
        n - tally.scored - tally.failed,
    )


def _check(tally: _Tally, settings: CaptionerSettings) -> None:
    asked = tally.scored + tally.failed
    if tally.failed <= settings.max_failed * asked:
        return
    share = f"captioner.max_failed ({settings.max_failed:.0%})"
    if settings.engine == OWN:
        raise UserError(
            f"scores.file lacks {tally.failed} of {asked} images (the first error: "
            f"{tally.first_error}), more than {share}."
        )
    raise UserError(
        f"{settings.model} gave no scores of {tally.failed} of {asked} images (the first error: "
        f"{tally.first_error}), more than {share}; try another scores.kind or captioner.model, or "
        "rerun: what was answered is not asked again."
    )


def _columns(ids: list[str], rows: list[RowScores]) -> dict[str, Any]:
    return {
        "image_id": ids,
        "options": pa.array([row.options for row in rows], pa.list_(pa.int32())),
        "log_probabilities": pa.array(
            [row.log_probabilities for row in rows], pa.list_(pa.float32())
        ),
        "none": pa.array([row.none for row in rows], pa.float32()),
        "error": pa.array([row.error for row in rows], pa.string()),
        "digest": pa.array([row.digest for row in rows], pa.string()),
    }
