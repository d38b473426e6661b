"""Prompts and choices as tokens, the same way for every engine that loads the model itself.

Letters: K choices of a request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.captions import processors
from latteclip.captions.requests import Request, choices_of
from latteclip.core.errors import UserError

ANSWER = 0  # any token: what follows it is not looked at


@dataclass(frozen=True)
class Split:
    """A prompt and its K choices, tokenised together and taken apart.

    A tokenizer may merge the end of the prompt with the beginning of a choice, and splits a class
    name otherwise after a space than at the beginning of a text. So prompt and choice are one text
    for it, and the choices begin where the first of them parts from the prompt.
    """

    prompt: list[int]  # the prompt alone
    start: int  # so many of its tokens begin every choice's text
    tails: list[list[int]]  # K: the tokens after these


class Tokens:
    """The chat template and the tokenizer of a model."""

    def __init__(self, processor: Any, model: str) -> None:
        """Take them from a processor of transformers; `model` is its name for messages."""
        self._processor, self._model = processor, model
        self._tokenizer = processor.tokenizer

    def prompts(self, request: Request) -> list[str]:
        """What the model reads before it answers, its images as marks: one, or one per order."""
        asked = choices_of(request).prompts or [request.prompt]
        n = len(request.pictures)
        return [processors.as_text(self._processor, n, prompt) for prompt in asked]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that begins as a prompt does."""
        special = processors.adds_special_tokens(self._tokenizer, text)
        found: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return found

    def split(self, prompt: str, texts: Sequence[str]) -> Split:
        """Take a prompt and its choices apart.

        A space at the beginning of a choice is left out where the prompt ends in white space.

        Raises:
            UserError: a choice has no token of its own.
        """
        if prompt[-1:].isspace():
            texts = [text.removeprefix(" ") for text in texts]
        alone = self.ids(prompt)
        whole = [self.ids(prompt + text) for text in texts]
        start = min(_common(alone, ids) for ids in whole)
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) == start:
                raise UserError(
                    f"The tokenizer of {self._model} has no token for {text!r}; rename the class "
                    "or change scores.answer."
                )
        return Split(alone, start, [ids[start:] for ids in whole])

    def split_orders(self, prompts: Sequence[str]) -> Split:
        """Take prompts apart whose beginning is the same, that of an image among it.

        Each tail ends in a token that stands for the answer.
        """
        whole = [self.ids(prompt) for prompt in prompts]
        start = min(_common(whole[0], ids) for ids in whole)
        return Split(whole[0], start, [[*ids[start:], ANSWER] for ids in whole])

    def ids_of_letters(self, letters: Sequence[str]) -> list[list[int]]:
        """The tokens that are a letter, or a space and the letter, for each of them.

        Raises:
            UserError: a letter has none.
        """
        found: dict[str, list[int]] = {letter: [] for letter in letters}
        size = len(self._tokenizer)
        texts = self._tokenizer.batch_decode([[number] for number in range(size)])
        for number, text in enumerate(texts):
            found.get(text.removeprefix(" "), []).append(number)
        for letter, ids in found.items():
            if not ids:
                raise UserError(
                    f"The tokenizer of {self._model} has no token for the letter {letter}; set "
                    "scores.kind to likelihood."
                )
        return list(found.values())

    def text(self, token: int) -> str:
        """A token as text."""
        decoded: str = self._tokenizer.decode([token])
        return decoded


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def exclusive(values: Sequence[float], tails: Sequence[Sequence[int]]) -> list[float]:
    """Log-probabilities of K choices, each of them without those that go on where it ends.

    The probability of tokens is that of all texts that begin with them: "dot" has that of "dotted"
    inside. What is wanted is that of "dot" and then none of the others, so theirs is taken off. A
    choice that no other one begins with keeps its value to the last bit.

    Args:
        values: log-probabilities of the tails.
        tails: K sequences of tokens, all different.
    """
    return [_without(values, tails, number) for number in range(len(values))]


def _without(values: Sequence[float], tails: Sequence[Sequence[int]], number: int) -> float:
    own = values[number]
    longer = [i for i in range(len(tails)) if i != number and _begins(tails[i], tails[number])]
    if not longer or own == -math.inf:
        return own
    # "dotted swiss" is inside "dotted" already.
    longer = [i for i in longer if not any(_begins(tails[i], tails[j]) for j in longer if j != i)]
    rest = 1.0 - math.fsum(math.exp(values[i] - own) for i in longer)
    return own + math.log(rest) if rest > 0 else -math.inf


def _begins(whole: Sequence[int], part: Sequence[int]) -> bool:
    return list(whole[: len(part)]) == list(part)
