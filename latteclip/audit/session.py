"""A page of questions about images, with the answers of a person in one file.

The page is served and its answers saved one by one, or it works offline and exports them as the
same JSON.
"""

import json
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latteclip.audit.server import SCRIPT, SERVED, PageServer
from latteclip.core import tables
from latteclip.core.answers import Answer, AnswerFile, SavedAnswers
from latteclip.core.errors import UserError
from latteclip.core.files import digest, write_text
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import counted
from latteclip.report.gallery import picture
from latteclip.report.render import fill

log = logging.getLogger(__name__)
# Classes: as many as there are keys for; of more classes, some are offered.
ALL_OFFERED = 9
# Classes that are offered if there are many; more where runs predict more.
OFFERED = 6
UPCOMING = 3  # questions that the page knows beforehand
OFFLINE = "img-src data:"  # sources that the policy of the offline page allows
OFFLINE_SIDE = 640  # pixels of a picture


@dataclass(frozen=True)
class Question:
    """An image and the classes that it may be of, in the order of the classes."""

    number: int
    image_id: str
    path: str
    content: str  # the image's checksum in hexadecimal digits
    options: list[str]
    phase: str | None = None  # TEACH or CHECK, of answers that teach

    def as_json(self, picture: str) -> dict[str, Any]:
        return {
            "image": self.image_id,
            "content": self.content,
            "options": self.options,
            "picture": picture,
            "phase": self.phase,
        }


class QuestionSession:
    """A page of questions whose answers are in one file."""

    name: str  # name of the command
    images: str  # the kind of images, for the page
    folder: Path  # folder of a dataset's results
    file: AnswerFile
    total: int  # how many questions there are
    questions: list[Question]  # as far as they are known
    picture_side = 1024
    status = ""  # a sentence for the page

    def ask(
        self,
        image: Mapping[str, Any],
        options: list[str],
        phase: str | None = None,
    ) -> None:
        """Add a question about a row of the index."""
        question = Question(
            len(self.questions),
            image["image_id"],
            image["path"],
            image["checksum"].hex(),
            options,
            phase,
        )
        self.questions.append(question)

    def answers(self) -> dict[str, Answer]:
        return self.file.read().answers

    def open_questions(
        self, answers: Mapping[str, Answer], *, offline: bool = False
    ) -> list[Question]:
        """Return the next questions without an answer, and offline all of them."""
        return [
            question
            for question in self.questions
            if question.image_id not in answers
        ]

    def read_file(self, path: str) -> SavedAnswers:
        """Return the answers of a file that the page exported, or raise UserError."""
        return self.file.parse(Path(path).read_bytes(), path)

    def result(self) -> dict[str, Any]:
        """Return a sentence, lines below it, and steps: a text and a command each."""
        raise NotImplementedError

    def state(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Return what the page must know when it opens and after each answer."""
        upcoming = self.open_questions(answers)[:UPCOMING]
        return {
            "answered": min(len(answers), self.total),
            "total": self.total,
            "upcoming": [
                question.as_json(f"image/{question.number}")
                for question in upcoming
            ],
        }

    def picture(self, number: int) -> str | None:
        return (
            self.questions[number].path if number < len(self.questions) else None
        )

    def save(self, content: bytes) -> dict[str, Any]:
        """Save new answers, and take others back. An earlier answer of another page stays."""
        sent = self.file.parse(content, "The request")
        earlier = self.answers().keys() - {*sent.removed}
        saved = self.file.update(sent.answers, sent.removed, keeps_earlier=True)
        is_late = not earlier.isdisjoint(sent.answers)
        return {**self.state(saved), "is_late": is_late}

    def render(self) -> tuple[str, str]:
        return self._render(SERVED, {"state": self.state(self.answers())})

    def render_offline(self) -> str:
        """Return a page that needs no server, with all open questions, or raise UserError."""
        questions = self.open_questions(self.answers(), offline=True)
        if not questions:
            raise UserError(
                "There is no image left without an answer; a larger --budget asks about more."
            )
        asked = [
            question.as_json(picture(question.path, OFFLINE_SIDE))
            for question in questions
        ]
        take = f"latteclip {self.name} {shlex.quote(str(self.folder))} --answers answers.json"
        values = {"take": take, "questions": asked}
        of_page = digest(json.dumps([self.file.classnames, values]))
        return self._render(OFFLINE, {**values, "digest": of_page})[0]

    def _render(self, sources: str, values: Mapping[str, Any]) -> tuple[str, str]:
        names = sorted(self.file.classnames)
        index = self.folder / "images.parquet"
        written = tables.read_metadata(index, IndexMetadata).written_names
        return fill(
            "audit.html",
            [SCRIPT, "audit.js"],
            sources,
            session=self,
            classnames=names,
            written=written,
            all_offered=len(names) <= ALL_OFFERED,
            values={
                **self.file.document().as_json(),
                "written": written,
                **values,
            },
        )


def in_class_order(classnames: Sequence[str], likely: Iterable[int]) -> list[str]:
    """Return all classes if they are few, or the likely ones in an order that tells nothing."""
    if len(classnames) <= ALL_OFFERED:
        return list(classnames)
    return [classnames[label] for label in sorted(likely)]


def run_session(
    session: QuestionSession,
    offline: str | None,
    answers: str | None,
    score: bool,
    port: int,
    *,
    browser: bool,
) -> None:
    """Do what the options of `audit` and `teach` say. Without them, ask the questions on a page."""
    if offline:
        write_text(offline, session.render_offline())
        print(
            f"Wrote {offline}. Open it in any browser, answer, export the answers, and take them "
            f"by latteclip {session.name} {shlex.quote(str(session.folder))} --answers FILE."
        )
        return
    if answers:
        import_answers(session, answers)
    elif not score:
        PageServer(session, port).show(browser=browser)
    result = session.result()
    print(result["sentence"], *result["lines"], sep="\n")
    for text, command in result["steps"]:
        print(f"\n{text}\n  {command}")


def import_answers(session: QuestionSession, path: str) -> None:
    """Add the answers of an exported file about images that have no answer yet."""
    exported = session.read_file(path)
    exported.warn(path, session.folder)
    before = session.answers()
    saved = session.file.update(exported.answers, keeps_earlier=True)
    log.info(
        "Took %d of %s from %s.",
        len(saved) - len(before),
        counted(len(exported.answers), "answer"),
        path,
    )
