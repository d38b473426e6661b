"""A series of questions about images, with the answers of a person in one file."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.labels.answers import Answer, Answers, AnswerSchema, Saved

log = logging.getLogger(__name__)
ALL_OFFERED = 9  # classes: as many as there are keys for; of more classes, some are offered
OFFERED = 6  # classes that are offered if there are many; more where runs predict more
UPCOMING = 3  # questions that the page knows beforehand
LAST = 100  # answers that the page can undo after it was opened


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
    """A series of questions whose answers are in one file."""

    name: str  # name of the command
    images: str  # the kind of images, for the page
    folder: Path  # folder of a dataset's results
    path: Path  # path of the answers
    schema: AnswerSchema
    total: int  # how many questions there are
    questions: list[Question]  # as far as they are known

    def answers(self) -> dict[str, Answer]:
        return self.saved().answers

    def saved(self) -> Saved:
        return self.schema.read(self.path)

    def open_questions(self, answers: Answers, *, offline: bool = False) -> list[Question]:
        """Return the next questions without an answer, and offline all of them."""
        return [question for question in self.questions if question.image_id not in answers]

    def read_file(self, path: str) -> Saved:
        return self.schema.read_exported(path)

    def status(self, _: Answers) -> str:
        """Return a sentence for the page."""
        return ""

    def result(self, answers: Answers) -> dict[str, Any]:
        """Return a sentence, tables of a head and rows, and steps: a text and a command each."""
        raise NotImplementedError

    def state(self, answers: Answers) -> dict[str, Any]:
        """Return what the page must know when it opens and after each answer."""
        upcoming = self.open_questions(answers)  # labels may learn, and the status follows
        return {
            "answered": min(len(answers), self.total),
            "total": self.total,
            "status": self.status(answers),
            "upcoming": [
                question.as_json(f"image/{question.number}")
                for question in upcoming[:UPCOMING]
            ],
        }


def in_class_order(classnames: Sequence[str], likely: Iterable[int]) -> list[str]:
    """Return all classes if they are few, or the likely ones in an order that tells nothing."""
    labels = range(len(classnames)) if len(classnames) <= ALL_OFFERED else sorted(likely)
    return [classnames[label] for label in labels]


def print_result(session: QuestionSession) -> None:
    """Print the result by the saved answers, and what to do next."""
    result = session.result(session.answers())
    for head, rows in result["tables"]:
        print(pd.DataFrame(rows, columns=head).to_string(index=False), end="\n\n")
    print(result["sentence"])
    for text, command in result["steps"]:
        print(f"\n{text}\n  {command}")


def import_answers(session: QuestionSession, path: str) -> None:
    """Add the answers of an exported file about images that have no answer yet."""
    exported = session.read_file(path)
    exported.warn(path, session.folder)
    saved = session.answers()
    new = {key: answer for key, answer in exported.answers.items() if key not in saved}
    session.schema.update(session.path, new)
    log.info(
        "Took %d of %d answers from %s: an image that has an answer keeps it.",
        len(new),
        len(exported.answers),
        path,
    )
