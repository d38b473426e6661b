"""The processor of a model that this process loads: how requests and choices become tokens.

Letters: K choices of a request.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latteclip.captions.engines.base import CaptionerSettings
from latteclip.captions.requests import Request, choices_of, messages
from latteclip.config import hub_names
from latteclip.core.errors import UserError

ANSWER = 0  # any token: what follows it is not looked at
SPECIAL_TOKENS = "added unless the prompt begins with them"  # the rule of all engines
# Parts of a tokenizer.json, and settings of a tokenizer_config.json, that add special tokens.
ADDING = ("SpecialToken", "BertProcessing", "RobertaProcessing")
ADDS = ("add_bos_token", "add_eos_token")
NEEDS = {"image_processor": "takes no pictures", "chat_template": "has no chat template"}


def load(settings: CaptionerSettings) -> Any:
    """Return the model's processor, which pads on the left.

    Raises:
        UserError: there is none, or it takes no pictures or no conversations.
    """
    import transformers

    try:
        processor = transformers.AutoProcessor.from_pretrained(
            settings.model,
            revision=settings.revision,
            padding_side="left",
            trust_remote_code=False,
        )
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
    """Return whether the tokenizer adds its special tokens to a prompt in its template's words.

    The rule of transformers: it does, unless the template has begun the prompt with them.
    """
    first = tokenizer.bos_token
    return first is None or not prompt.startswith(first)


def special_tokens(model: str, revision: str | None) -> str | None:
    """Return the rule for special tokens as a part of what is asked.

    None where the model's tokenizer has none to add, as Qwen's: its answers are the same under any
    rule. Read from its files, as transformers takes seconds to import. Where these do not tell, the
    rule counts.
    """
    try:
        tokenizer, settings = (
            json.loads(_file(model, revision, name).read_bytes())
            for name in ("tokenizer.json", "tokenizer_config.json")
        )
        adding = json.dumps(tokenizer["post_processor"])
        adds = any(part in adding for part in ADDING) or any(settings.get(name) for name in ADDS)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        adds = True
    return SPECIAL_TOKENS if adds else None


def _file(model: str, revision: str | None, name: str) -> Path:
    """Return the path of a file of a model, which is fetched where the hub's cache lacks it."""
    if hub_names.is_folder(model):
        return Path(model, name)
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(model, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    return Path(huggingface_hub.hf_hub_download(model, name, revision=revision))


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
        """Take a processor of transformers; `model` is its name for messages."""
        self._processor, self._model = processor, model
        self._tokenizer = processor.tokenizer

    def prompts(self, request: Request) -> list[str]:
        """Return what the model reads before it answers, images as marks: one, or one per order."""
        asked = choices_of(request).prompts or [request.prompt]
        n = len(request.pictures)
        return [as_text(self._processor, n, prompt) for prompt in asked]

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text that begins as a prompt does."""
        special = adds_special_tokens(self._tokenizer, text)
        found: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return found

    def split(self, prompt: str, texts: Sequence[str]) -> Split:
        """Take a prompt and its choices apart.

        A space at the beginning of a choice is left out where the prompt ends in white space.

        Raises:
            UserError: a choice has no token.
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
        """Return the tokens that are a letter, or a space and the letter, for each of them.

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
        """Return a token as text."""
        decoded: str = self._tokenizer.decode([token])
        return decoded


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def exclusive(values: Sequence[float], tails: Sequence[Sequence[int]]) -> list[float]:
    """Return log-probabilities of K choices, each without those that go on where it ends.

    The probability of tokens is that of all texts that begin with them: "dot" has that of "dotted"
    inside. What is wanted is that of "dot" and then none of the others, so theirs is taken off. A
    choice that no other one begins with keeps its value to the last bit.

    Args:
        values: log-probabilities of the tails.
        tails: K sequences of tokens, all different.
    """
    return [_without(values, tails, number) for number in range(len(values))]


def _without(values: Sequence[float], tails: Sequence[Sequence[int]], number: int) -> float:
    value = values[number]
    longer = [i for i in range(len(tails)) if i != number and _begins(tails[i], tails[number])]
    if not longer or value == -math.inf:
        return value
    # "dotted swiss" is inside "dotted" already.
    longer = [i for i in longer if not any(_begins(tails[i], tails[j]) for j in longer if j != i)]
    rest = 1.0 - math.fsum(math.exp(values[i] - value) for i in longer)
    return value + math.log(rest) if rest > 0 else -math.inf


def _begins(whole: Sequence[int], part: Sequence[int]) -> bool:
    return list(whole[: len(part)]) == list(part)
