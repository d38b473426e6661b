"""What an LMM is asked about the classes of an image, and what becomes of its answers.

Letters: N training images, R images of a shard, C classes, K options of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latteclip.captions import letters
from latteclip.captions.questions import Questions
from latteclip.captions.request import Choices
from latteclip.captions.scores import Scores
from latteclip.core.errors import UserError
from latteclip.core.prompts import PLACE, fill

LIKELIHOOD, LETTERS = KINDS = ("likelihood", "letters")
# A full stop ends the name: "dot." is no beginning of "dotted.".
ANSWER = " {}."


@dataclass(frozen=True)
class ScoreSettings:
    """How classes are scored."""

    kind: str | None  # one of KINDS
    topk: int  # options; all classes where there are few
    answer: str | None  # of likelihood: the text with a place for the class name; null: ANSWER
    orders: int  # of letters: in how many orders the options are shown
    share: float  # of the images, those of which CLIP is least sure
    file: str | None = None  # of engine file
    prompt: str = ""  # of likelihood

    @property
    def turns(self) -> int:
        """Requests about an image."""
        return self.orders if self.kind == LETTERS else 1

    @property
    def template(self) -> str:
        """The answer with a place for the class name."""
        return ANSWER if self.answer is None else self.answer

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            UserError: says which key of the configuration to change.
        """
        if self.kind not in KINDS:
            raise UserError(f"scores.kind is {self.kind!r}; set it to {' or '.join(KINDS)}.")
        if self.kind == LIKELIHOOD and PLACE not in self.template:
            raise UserError(
                f"scores.answer {self.template!r} has no {PLACE} for the class name: all classes "
                "would score the same."
            )
        if self.kind == LIKELIHOOD and PLACE in self.prompt:
            raise UserError(
                f"The image prompt {self.prompt!r} names the pseudo-label, which scores would then "
                f"repeat: take {PLACE} out of prompts.image, or set scores.kind to letters."
            )


@dataclass(frozen=True)
class RowScores:
    """What becomes of an image: the columns of CLASS_SCORES, and where they come from."""

    options: Sequence[int] = ()
    log_probabilities: Sequence[float] = ()
    none: float | None = None
    error: str | None = None
    digest: str | None = None  # None where nothing was asked
    engine: str = ""
    date: str | None = None


NOT_ASKED = RowScores()


@dataclass(frozen=True)
class ClassQuestions:
    """The R images of a shard, and the options of each."""

    images: Questions
    classnames: Sequence[str]  # C
    options: np.ndarray  # int32 [R, K]
    is_asked: np.ndarray  # bool [R]
    settings: ScoreSettings

    def ask(self, row: int, turn: int) -> tuple[str, Choices]:
        """The prompt of a turn about an image, and the choices that go with it."""
        names = [self.classnames[c] for c in self.options[row]]
        if self.settings.kind == LIKELIHOOD:
            texts = tuple(fill(self.settings.template, name) for name in names)
            return self.settings.prompt, Choices(LIKELIHOOD, texts)
        shown = [names[i] for i in self._order(row, turn)]
        return letters.letters_prompt(shown), Choices(LETTERS, letters.letters_of(len(names)))

    def understand(self, row: int, found: Sequence[Scores | None]) -> RowScores:
        """What the answers of all turns say of an image; None is one that holds no scores."""
        options = self.options[row].tolist()
        scores = [each for each in found if each is not None and self._fits(each, len(options))]
        if len(scores) < len(found):
            return RowScores(error="the kept answer is one to another question")
        if self.settings.kind == LIKELIHOOD:
            return RowScores(options, scores[0].log_probabilities)
        return self._by_letters(row, options, scores)

    def _fits(self, scores: Scores, n: int) -> bool:
        """Whether there are as many scores as choices."""
        return len(scores.log_probabilities) == n + (self.settings.kind == LETTERS)

    def _by_letters(self, row: int, options: Sequence[int], scores: Sequence[Scores]) -> RowScores:
        shown = letters.letters_of(len(options))
        for each in scores:
            if letters.letter_of(each.first or "", shown) is None:
                error = f"the answer begins with {each.first!r}, which is none of the letters"
                return RowScores(error=error)
        orders = [self._order(row, turn) for turn in range(len(scores))]
        values = letters.over_orders(list(zip(scores, orders, strict=True)))
        if values is None:
            return RowScores(error="no letter has any probability")
        return RowScores(options, values[:-1], values[-1])

    def _order(self, row: int, turn: int) -> list[int]:
        names = [self.classnames[c] for c in self.options[row]]
        return letters.order_of(self.images.ids[row], turn, names)
