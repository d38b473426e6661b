"""The page that asks a person about images, served or offline.

The page holds the answers. The server saves them after each key press, and the page that works
offline exports them as the same JSON.
"""

import logging
import shlex
from collections.abc import Mapping
from typing import Any

from latteclip.audit.session import ALL_OFFERED, QuestionSession
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.core.terminal import counted
from latteclip.data.images import open_rgb
from latteclip.report import render
from latteclip.report.gallery import picture

log = logging.getLogger(__name__)
OFFLINE = "img-src data:"  # sources that the policy of the offline page allows
OFFLINE_SIDE = 640  # pixels of a picture
PACKAGE = "latteclip.audit"


def render_page(
    session: QuestionSession, sources: str, values: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the page with values for its script, and the policy that allows these `sources`."""
    return render.fill(
        PACKAGE,
        "audit.html",
        ["audit.js"],
        sources,
        session=session,
        classnames=sorted(session.schema.classnames),
        all_offered=len(session.schema.classnames) <= ALL_OFFERED,
        values={**session.schema.header(), **values},
    )


def write_offline(session: QuestionSession, output: str) -> None:
    """Write a page that needs no server, with all open questions, or raise UserError."""
    questions = session.open_questions(session.answers(), offline=True)
    if not questions:
        raise UserError(
            "There is no image left without an answer; a larger --budget asks about more."
        )
    folder = shlex.quote(str(session.folder))
    values = {
        "offline": True,
        "take": f"latteclip {session.name} {folder} --answers answers.json",
        "answered": session.total - len(questions),
        "questions": [question.as_json(_data_uri(question.path)) for question in questions],
    }
    write_text(output, render_page(session, OFFLINE, values)[0])
    log.info(
        "Wrote %s with %s. Open it in any browser, export the answers there, and run %s.",
        output,
        counted(len(questions), "image"),
        values["take"],
    )


def _data_uri(path: str) -> str:
    """Return an image as part of a page, "" where it cannot be decoded."""
    try:
        image = open_rgb(path, max_side=OFFLINE_SIDE)
    except UserError as error:
        log.warning("%s It has no picture on the page.", error)
        return ""
    return picture(image, OFFLINE_SIDE).uri
