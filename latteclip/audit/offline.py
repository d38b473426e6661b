"""An audit in one HTML file: it needs no network and no server, and exports its answers."""

import logging
import shlex
from typing import Any

from latteclip.audit.answers import VERSION
from latteclip.audit.page import page
from latteclip.audit.session import Question, Session, shown
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.report.images import picture

log = logging.getLogger(__name__)
SIDE = 640
MOST_BYTES, PICTURE_BYTES = 18_000_000, 90_000  # of all pictures and of each, before base64
LEAST_BYTES = 4_000  # of a picture in which one still sees something
SOURCES = "img-src data:"


def write_offline(session: Session, output: str) -> None:
    """Write the page with the pictures of all questions that have no answer yet.

    Raises:
        UserError: nothing is left to ask, or the pictures of so many would be too small.
    """
    first = session.current()
    if first is None:
        raise UserError(
            f"All {session.total} images are answered already; a larger --budget asks more."
        )
    standing = session.answers.standing()
    questions = [
        one for one in map(session.question, range(session.total)) if one.image_id not in standing
    ]
    most = min(PICTURE_BYTES, MOST_BYTES // len(questions))
    if most < LEAST_BYTES:
        raise UserError(
            f"A page with {len(questions):,} pictures would be too large; ask for at most "
            f"--budget {MOST_BYTES // LEAST_BYTES}."
        )
    values = {
        "offline": True,
        "take": f"latteclip audit {shlex.quote(str(session.folder))} --answers answers.json",
        **session.asked.header(),
        "format": VERSION,
        "questions": [_question(one, most) for one in questions],
    }
    text, _ = page(session, SOURCES, values)
    write_text(output, text)
    log.info(
        "Wrote %s: %d images, %d are answered already, %.1f MB. Open it in any browser, export the "
        "answers there, and run %s.",
        output,
        len(questions),
        session.answered(),
        len(text.encode()) / 1e6,
        values["take"],
    )


def _question(question: Question, most: int) -> dict[str, Any]:
    try:
        uri = picture(shown(question, SIDE), SIDE, most).uri
    except UserError as error:
        log.warning("%s It is asked without a picture.", error)
        uri = ""
    return {"image": question.image_id, "options": question.options, "picture": uri}
