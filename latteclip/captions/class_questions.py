"""What an LMM is asked about the classes of an image, and what becomes of its answers.

Letters: N training images, R images of a shard, C classes, K options of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latteclip.captions import letters
from latteclip.captions.answers import NO_TOKENS, Tokens
from latteclip.captions.requests import Choices, Questions
from latteclip.captions.scores import Scores
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError

LIKELIHOOD, LETTERS = KINDS = ("likelihood", "multiple_choice")
# A full stop ends the name: "dot." is no beginning of "dotted.".
ANSWER = " {}."


@dataclass(frozen=True)
class ScoreSettings:
    """How classes are scored."""

    kind: str | None  # one of KINDS
    topk: int  # options; all classes where there are few
    answer: str | None  # of likelihood: the text with a place for the class name; null: ANSWER
    orders: int  # of multiple_choice: in how many orders the options are shown
    share: float  # of the images, those of which CLIP is least sure
    file: str | None = None  # of engine file
    prompt: str = ""  # of likelihood

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
            found = "null" if self.kind is None else repr(self.kind)
            raise UserError(f"scores.kind is {found}; set it to {' or '.join(KINDS)}.")
        if self.kind == LIKELIHOOD and PLACE not in self.template:
            raise UserError(
                f"scores.answer {self.template!r} has no {PLACE} for the class name: all classes "
                "would score the same."
            )
        if self.kind == LIKELIHOOD and PLACE in self.prompt:
            raise UserError(
                f"The image prompt {self.prompt!r} names the pseudo-label, which scores would then "
                f"repeat: take {PLACE} out of prompts.image, or set scores.kind to multiple_choice."
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
    tokens: Tokens = NO_TOKENS


NOT_ASKED = RowScores()


@dataclass(frozen=True)
class ClassQuestions:
    """The R images of a shard, and the options of each."""

    images: Questions
    classnames: Sequence[str]  # C
    options: np.ndarray  # int32 [R, K]
    is_asked: np.ndarray  # bool [R]
    settings: ScoreSettings

    def ask(self, row: int) -> tuple[str, Choices]:
        """The prompt about an image, and the choices that go with it."""
        names = self._names(row)
        if self.settings.kind == LIKELIHOOD:
            texts = tuple(fill(self.settings.template, name) for name in names)
            return self.settings.prompt, Choices(LIKELIHOOD, texts)
        prompts = tuple(
            letters.letters_prompt([names[i] for i in order]) for order in self._orders(row)
        )
        return prompts[0], Choices(LETTERS, letters.letters_of(len(names)), prompts)

    def understand(self, row: int, scores: Scores | None) -> RowScores:
        """What the answer about an image says; None is one that holds no scores."""
        options = self.options[row].tolist()
        if scores is None or not self._fits(scores, len(options)):
            return RowScores(error="the kept answer is one to another question")
        if self.settings.kind == LIKELIHOOD:
            return RowScores(options, scores.log_probabilities[0])
        return self._by_letters(row, options, scores)

    def _fits(self, scores: Scores, n: int) -> bool:
        """Whether there are as many scores as choices, and of as many prompts."""
        by_letters = self.settings.kind == LETTERS
        orders = self.settings.orders if by_letters else 0
        sizes = [len(values) for values in scores.log_probabilities]
        return sizes == [n + by_letters] * max(orders, 1) and len(scores.first) == orders

    def _by_letters(self, row: int, options: Sequence[int], scores: Scores) -> RowScores:
        shown = letters.letters_of(len(options))
        for first in scores.first:
            if letters.letter_of(first, shown) is None:
                return RowScores(
                    error=f"the answer begins with {first!r}, which is none of the letters"
                )
        values = letters.over_orders(scores.log_probabilities, self._orders(row))
        if values is None:
            return RowScores(error="no letter has any probability")
        return RowScores(options, values[:-1], values[-1])

    def _orders(self, row: int) -> list[list[int]]:
        names, image_id = self._names(row), self.images.ids[row]
        return [letters.order_of(image_id, i, names) for i in range(self.settings.orders)]

    def _names(self, row: int) -> list[str]:
        return [self.classnames[c] for c in self.options[row]]
