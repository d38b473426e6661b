"""The processor of a model that this process loads: how requests and choices become tokens.

Letters: K choices of a request.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.captions.engines.base import CaptionerSettings
from latteclip.captions.requests import Request, messages
from latteclip.core.errors import UserError

ANSWER = 0  # any token: what follows it is not looked at
NEEDS = {"image_processor": "takes no pictures", "chat_template": "has no chat template"}


def load(settings: CaptionerSettings) -> Any:
    """Return the model's processor, which pads on the left.

    Raises:
        UserError: there is none, or it takes no pictures or no conversations.
    """
    import transformers

    options = {"revision": settings.revision, "padding_side": "left", "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(settings.model, **options)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"Captioner model {settings.model!r} cannot be loaded: {error}") from None
    for part, lack in NEEDS.items():
        if getattr(processor, part, None) is None:
            raise UserError(
                f"Captioner model {settings.model!r} {lack}; set captioner.model to a multimodal "
                "model that answers questions."
            )
    return processor


def as_text(processor: Any, n_pictures: int, prompt: str) -> str:
    """Return a request in the words of the model's chat template, up to where the answer begins."""
    conversation = messages([{"type": "image"}] * n_pictures, prompt)
    text: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    return text


def adds_special_tokens(tokenizer: Any, prompt: str) -> bool:
    """Return whether the tokenizer adds its special tokens: not where the template has done so."""
    first = tokenizer.bos_token
    return first is None or not prompt.startswith(first)


@dataclass(frozen=True)
class Split:
    """A prompt and its K choices, tokenised together and taken apart.

    A tokenizer may merge the end of the prompt with the beginning of a choice. So both are one text
    for it, and the choices begin where the first of them parts from the prompt.
    """

    prompt: list[int]  # the prompt alone
    start: int  # so many of its tokens begin every choice's text
    tails: list[list[int]]  # K: the tokens after these


class Tokens:
    """The chat template and the tokenizer of a model."""

    def __init__(self, processor: Any, model: str) -> None:
        """Take a processor of transformers; `model` is its name for messages."""
        self._processor, self._model = processor, model
        self._tokenizer = processor.tokenizer
        self.ids_of_letters = functools.cache(self._ids_of_letters)

    def prompts(self, request: Request) -> list[str]:
        """Return what the model reads before it answers, images as marks: one, or one per order."""
        asked = request.wanted.prompts or [request.prompt]
        n = len(request.pictures)
        return [as_text(self._processor, n, prompt) for prompt in asked]

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text that begins as a prompt does."""
        special = adds_special_tokens(self._tokenizer, text)
        found: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return found

    def split(self, prompt: str, texts: Sequence[str]) -> Split:
        """Take a prompt and its choices apart, with one space between them at most.

        Raises:
            UserError: a choice has no token.
        """
        if prompt[-1:].isspace():
            texts = [text.removeprefix(" ") for text in texts]
        alone = self.ids(prompt)
        whole = [self.ids(prompt + text) for text in texts]
        start = _shared_start([alone, *whole])
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) == start:
                raise UserError(
                    f"The tokenizer of {self._model} has no token for {text!r}; rename the class "
                    "or change scores.answer."
                )
        return Split(alone, start, [ids[start:] for ids in whole])

    def split_orders(self, prompts: Sequence[str]) -> Split:
        """Take prompts apart that begin alike. Each tail ends in a token in the answer's place."""
        whole = [self.ids(prompt) for prompt in prompts]
        start = _shared_start(whole)
        return Split(whole[0], start, [[*ids[start:], ANSWER] for ids in whole])

    def _ids_of_letters(self, letters: tuple[str, ...]) -> list[list[int]]:
        """Return the tokens that are a letter, or a space and the letter, for each of them.

        Raises:
            UserError: a letter has none.
        """
        found: dict[str, list[int]] = {letter: [] for letter in letters}
        texts = self._tokenizer.batch_decode([[number] for number in range(len(self._tokenizer))])
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
        decoded: str = self._tokenizer.decode([token])
        return decoded


def _shared_start(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with together."""
    places = enumerate(zip(*texts, strict=False))
    return next((i for i, tokens in places if len(set(tokens)) > 1), min(map(len, texts)))


def exclusive(values: Sequence[float], tails: Sequence[Sequence[int]]) -> list[float]:
    """Return log-probabilities of K choices, each without those that go on where it ends.

    The probability of tokens is that of all texts that begin with them: "dot" has that of "dotted"
    inside, which is taken off. A choice that no other one begins with keeps its value to the last
    bit. All tails are different.
    """
    found = dict(zip(map(tuple, tails), values, strict=True))
    return [_without_longer(tail, found) for tail in found]


def _without_longer(tail: tuple[int, ...], values: dict[tuple[int, ...], float]) -> float:
    value = values[tail]
    longer = [other for other in values if _continues(other, tail)]
    # "dotted swiss" is inside "dotted" already.
    next_longer = [o for o in longer if not any(_continues(o, between) for between in longer)]
    if not longer or value == -math.inf:
        return value
    rest = 1.0 - math.fsum(math.exp(values[other] - value) for other in next_longer)
    return value + math.log(rest) if rest > 0 else -math.inf


def _continues(whole: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return len(whole) > len(part) and whole[: len(part)] == part
