"""The processor of a model that this process loads: how requests and choices become tokens."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.captions.engine import Response, messages, scored
from latteclip.captions.questions import Choices, Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.errors import UserError


def load(settings: CaptionerSection) -> Any:
    """Return the model's processor, which pads on the left and takes pictures and conversations."""
    import transformers

    try:
        processor = transformers.AutoProcessor.from_pretrained(
            settings.model,
            revision=settings.revision,
            padding_side="left",
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"Captioner model {settings.model!r} cannot be loaded: {error}"
        ) from None
    if not hasattr(processor, "image_processor") or processor.chat_template is None:
        raise UserError(
            f"Captioner model {settings.model!r} takes no pictures or has no chat template; set "
            "captioner.model to a multimodal model that answers questions."
        )
    return processor


def adds_special_tokens(tokenizer: Any, prompt: str) -> bool:
    """Return whether the tokenizer adds its special tokens: not where the template has done so."""
    first = tokenizer.bos_token
    return first is None or not prompt.startswith(first)


@dataclass(frozen=True)
class SplitTokens:
    """A prompt and its K choices, tokenised as one text each and taken apart where they differ.

    A tokenizer may merge the end of the prompt with the beginning of a choice.
    """

    prompt: list[int]  # the prompt alone
    start: int  # so many of its tokens begin every choice's text
    tails: list[list[int]]  # K: the tokens after these

    def answer(self, choices: Choices, values: Sequence[float], n_read: int) -> Response:
        """Return the answer by the log-probabilities [K] of the tails."""
        n_tokens = sum(map(len, self.tails))
        rows = [exclusive(values, self.tails)]
        return scored(choices, rows, n_tokens=n_tokens, n_read=n_read)


class Tokens:
    """The chat template and the tokenizer of a model."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self.ids_of_letters = functools.cache(self._ids_of_letters)

    def prompts(self, request: Request) -> list[str]:
        """Return what the model reads before it answers, one text for each order of the options.

        Images are placeholders.
        """
        orders = request.choices.prompts if request.choices else ()
        placeholders = [{"type": "image"}] * len(request.pictures)
        turns = (messages(placeholders, prompt) for prompt in orders or [request.prompt])
        template = self._processor.apply_chat_template
        return [template(turn, add_generation_prompt=True) for turn in turns]

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text that begins as a prompt does."""
        special = adds_special_tokens(self._tokenizer, text)
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def split(self, prompt: str, texts: Sequence[str]) -> SplitTokens:
        """Take a prompt and its choices apart, with one space between them at most."""
        if prompt[-1:].isspace():
            texts = [text.removeprefix(" ") for text in texts]
        alone = self.ids(prompt)
        whole = [self.ids(prompt + text) for text in texts]
        columns = zip(alone, *whole, strict=False)
        start = len([*itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns)])
        return SplitTokens(alone, start, [ids[start:] for ids in whole])

    def _ids_of_letters(self, letters: tuple[str, ...]) -> list[list[int]]:
        """Return the tokens that are a letter, or a space and the letter, for each of them."""
        numbers: dict[str, list[int]] = {letter: [] for letter in letters}
        texts = self._tokenizer.batch_decode(
            [[number] for number in range(len(self._tokenizer))]
        )
        for number, text in enumerate(texts):
            numbers.get(text.removeprefix(" "), []).append(number)
        return list(numbers.values())

    def text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def exclusive(values: Sequence[float], tails: Sequence[Sequence[int]]) -> list[float]:
    """Return log-probabilities of K choices, each without those that go on where it ends.

    The probability of tokens is that of all texts that begin with them: "dot" has that of "dotted"
    inside, which is taken off. A choice that no other one begins with keeps its value to the last
    bit. All tails are different.
    """
    whole = dict(zip(map(tuple, tails), values, strict=True))
    alone: dict[tuple[int, ...], float] = {}
    for tail in sorted(whole, key=len, reverse=True):
        value = whole[tail]
        longer = [alone[other] for other in alone if other[: len(tail)] == tail]
        if value > -math.inf:
            rest = 1.0 - math.fsum(math.exp(each - value) for each in longer)
            value = value + math.log(rest) if rest > 0 else -math.inf
        alone[tail] = value
    return [alone[tail] for tail in whole]
