"""The questions of an audit and the answers to them, one image after the other.

Letters: N images, n questions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from latteclip.audit import candidates, draw
from latteclip.audit.answers import UNDONE, Answer, Answers
from latteclip.audit.candidates import Audited
from latteclip.audit.score import RunFiles, asked, scored
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest
from latteclip.data.images import image_exists, open_rgb
from latteclip.evaluate.results import Audit

FOLDER = "audit"  # in a dataset's results
ALL_OFFERED = 9  # classes: as many as there are keys for; of more, some are offered
OFFERED = 6  # of many classes, or more where runs predict more


@dataclass(frozen=True)
class Question:
    """An image and the classes that it may be of, in the order of the classes."""

    number: int
    image_id: str
    path: str
    options: list[str]


class Session:
    """An audit that is going on: n questions, of which some are answered."""

    def __init__(self, folder: str | Path, split: str | None, budget: int) -> None:
        """Go on with the audit of a dataset's results, or begin one.

        Args:
            folder: of the results.
            split: test or train; None: see `candidates.read`.
            budget: how many images are asked about; fewer where there are fewer.

        Raises:
            UserError: there is nothing to audit, or what was begun does not fit.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder; name the results of a dataset.")
        self.audited = candidates.read(folder, split, lambda name: draw.planned(self._plan(name)))
        self._place = self.folder / FOLDER / self.audited.split
        self.plan = draw.read_or_draw(self._plan(self.audited.split), self.audited)
        self.asked = asked(self.audited.dataset, self.plan)
        self.read_answers()
        self.total = min(budget, len(self.audited.image_ids))

    def _plan(self, split: str) -> Path:
        return self.folder / FOLDER / split / "plan.parquet"

    def read_answers(self) -> None:
        """Read the answers that are kept by now."""
        self.answers = Answers(self._place / "answers.jsonl", self.asked)

    @property
    def lock(self) -> Path:
        """The file that the one server of an audit holds."""
        return self._place / ".lock"

    def question(self, number: int) -> Question:
        """The question that is asked as number 0, 1, ... n - 1."""
        row = int(self.plan.drawn(self.total)[number])
        return Question(
            number,
            self.audited.image_ids[row],
            self.audited.paths[row],
            options(self.audited, row),
        )

    def current(self) -> int | None:
        """The number of the first question without an answer; None when all have one."""
        standing = self.answers.standing()
        for number in range(self.total):
            if self._id(number) not in standing:
                return number
        return None

    def answered(self) -> int:
        """How many of the n questions have an answer."""
        standing = self.answers.standing()
        return sum(self._id(number) in standing for number in range(self.total))

    def answer(self, number: int, kind: str, classname: str | None) -> bool:
        """Keep an answer to the current question; False where that is another one by now.

        So the answers of two tabs, or of a button that is hit twice, do not count twice.

        Raises:
            UserError: there is no such answer.
        """
        if number != self.current():
            return False
        values = Answer(self._id(number), kind, classname).line()
        self.answers.add([self.asked.answer(values, "The request")])
        return True

    def take(self, exported: Iterable[Answer]) -> int:
        """Keep answers to questions that have none yet; how many these were."""
        standing = self.answers.standing()
        found = [one for one in exported if one.image_id not in standing and one.kind != UNDONE]
        if found:
            self.answers.add(found)
        return len(found)

    def score(self) -> Audit:
        """Score every run in the folder by the answers; UserError where there are too few."""
        runs = [self._run(*one) for one in candidates.runs(self.folder)]
        return scored(self.audited.dataset, self.plan, self.answers.standing(), runs)

    def _run(self, method: str, seed: int) -> RunFiles:
        folder = self.folder / method / f"seed{seed}"
        judged = candidates.left_out(folder)
        return RunFiles(
            method,
            seed,
            str(folder / "metrics.json"),
            str(folder / "predictions.parquet"),
            str(judged) if judged.is_file() else None,
            has_model=(folder / "model").is_dir() or method in candidates.FIRST,
        )

    def vanished(self) -> list[str]:
        """The files of questions without an answer that are no longer there."""
        standing = self.answers.standing()
        questions = (self.question(number) for number in range(self.total))
        return [
            one.path
            for one in questions
            if one.image_id not in standing and not image_exists(one.path)
        ]

    @cached_property
    def _ids(self) -> list[str]:
        return [self.audited.image_ids[row] for row in self.plan.drawn(self.total)]

    def _id(self, number: int) -> str:
        return self._ids[number]


def options(audited: Audited, row: int) -> list[str]:
    """Return the classes that are offered for an image, in the order of all classes.

    Of few classes they are all. Of many they are those that a run predicts, CLIP's next best, and
    others at random up to OFFERED: their order says nothing of who predicts what.
    """
    c = len(audited.classnames)
    if c <= ALL_OFFERED:
        return list(audited.classnames)
    rng = np.random.default_rng(int(digest(audited.image_ids[row])[:16], 16))
    predicted = dict.fromkeys(audited.predictions[row].tolist())
    others = [*audited.ranked[row].tolist(), *rng.permutation(c).tolist()]
    offered = list(predicted | dict.fromkeys(others))[: max(OFFERED, len(predicted))]
    return [audited.classnames[label] for label in sorted(offered)]


def shown(question: Question, side: int) -> Image.Image:
    """The picture of a question, its longer side at most so many pixels.

    Raises:
        UserError: the file vanished, or cannot be decoded.
    """
    return open_rgb(question.path, max_side=side)
