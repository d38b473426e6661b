"""Captions and class scores through transformers, for machines on which vLLM does not run.

vLLM's engine has the same processor of a model, which turns requests and choices into tokens.
"""

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from latteclip.captions.engine import Response, at_once, messages, scored
from latteclip.captions.questions import Choices, Request
from latteclip.config.keys import CaptionerSection
from latteclip.core import devices
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)
# Tokens of a batch: of LLaVA-1.6 at captioner.max_model_len 4,096, they are 16 requests. A CPU gets
# fewer: where its memory is short, the system kills the process, and no batch can be halved.
TOKENS = 2**16
TOKENS_OF_CPU = 2**14


def _load(kind: Any, settings: CaptionerSection, **options: Any) -> Any:
    """Return what a class of transformers loads of a model, or raise UserError."""
    try:
        return kind.from_pretrained(
            settings.model,
            revision=settings.revision,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"Captioner model {settings.model!r} cannot be loaded: {error}"
        ) from None


def load_processor(settings: CaptionerSection) -> Any:
    """Return the model's processor, which pads on the left and takes pictures and conversations."""
    processor = _load(transformers.AutoProcessor, settings, padding_side="left")
    if (
        not hasattr(processor, "image_processor")
        or processor.chat_template is None
    ):
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

    def answer(
        self, choices: Choices, values: Sequence[float], n_read: int
    ) -> Response:
        """Return the answer by the log-probabilities [K] of the tails."""
        n_tokens = sum(map(len, self.tails))
        rows = [exclusive(values, self.tails)]
        return scored(choices, rows, n_tokens=n_tokens, n_read=n_read)


class Tokens:
    """The chat template and the tokenizer of a model."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer

    def prompts(self, request: Request) -> list[str]:
        """Return what the model reads before it answers, one text for each order of the options.

        Images are placeholders.
        """
        orders = request.choices.prompts if request.choices else ()
        placeholders = [{"type": "image"}] * len(request.pictures)
        turns = (
            messages(placeholders, prompt) for prompt in orders or [request.prompt]
        )
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
        start = len(
            [*itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns)]
        )
        return SplitTokens(alone, start, [ids[start:] for ids in whole])

    @functools.cache  # noqa: B019  an engine lives as long as its process
    def ids_of_letters(self, letters: tuple[str, ...]) -> list[list[int]]:
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


def exclusive(
    values: Sequence[float], tails: Sequence[Sequence[int]]
) -> list[float]:
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


class TransformersEngine:
    """Answers in batches, each padded to its longest prompt."""

    def __init__(
        self, settings: CaptionerSection, threads: int, *_: object
    ) -> None:
        if settings.quantization is not None:
            raise UserError(
                "captioner.quantization is vLLM's; with engine transformers set it to null."
            )
        self._device = devices.pick("auto", threads)
        tokens = TOKENS_OF_CPU if self._device.type == "cpu" else TOKENS
        self._at_once = at_once(settings, max(1, tokens // settings.max_model_len))
        self._max_new_tokens = settings.max_new_tokens
        self._processor = load_processor(settings)
        self._model = _load(
            transformers.AutoModelForImageTextToText,
            settings,
            dtype=settings.dtype,
            use_safetensors=True,
        )
        self._model.eval().to(self._device)
        self._tokens = Tokens(self._processor)

    def answer(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Response]]:
        source = iter(requests)
        waiting = list[Request]()
        while waiting := waiting or list(itertools.islice(source, self._at_once)):
            batch = waiting[: self._at_once]
            try:
                answers = self._answers(batch)
            # Which holds memory until the handler is left.
            except torch.OutOfMemoryError:
                answers = []
            if answers:
                yield from zip(batch, answers, strict=True)
                waiting = waiting[len(batch) :]
                continue
            if len(batch) == 1:
                raise UserError(
                    "The GPU's memory does not hold a single request; end what else uses the GPU, "
                    "set captioner.dtype to bfloat16, or lower captioner.max_image_side."
                )
            self._at_once = len(batch) // 2
            log.warning(
                "%d requests do not fit into the GPU's memory: asking fewer at once.",
                len(batch),
            )

    @torch.inference_mode()
    def _answers(self, batch: Sequence[Request]) -> list[Response]:
        choices = batch[0].choices
        if choices is None:
            return self._captions(batch)
        score = self._letters if choices.by_letters else self._likelihoods
        return [score(request, request.choices or choices) for request in batch]

    def _captions(self, batch: Sequence[Request]) -> list[Response]:
        prompts = [self._tokens.prompts(request)[0] for request in batch]
        inputs = self._inputs(batch, prompts)
        whole = self._model.generate(
            **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
        )
        written = whole[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        ends = torch.tensor(
            self._model.generation_config.eos_token_id, device=self._device
        )
        is_end = torch.isin(written, ends)
        has_end = is_end.any(1)
        # The first end counts, and padding after it does not.
        n_written = (is_end.cumsum(1) == 0).sum(1) + has_end
        n_read = inputs["attention_mask"].sum(1)
        columns = (has_end.tolist(), n_written.tolist(), n_read.tolist())
        return [
            Response(text, "stop" if ended else "length", written, read)
            for text, ended, written, read in zip(texts, *columns, strict=True)
        ]

    def _inputs(self, batch: Sequence[Request], prompts: Sequence[str]) -> Any:
        """Return pictures and prompts as the model takes them, padded on the left."""
        inputs = self._processor(
            images=[list(request.pictures) for request in batch],
            text=list(prompts),
            padding=True,
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(
                self._processor.tokenizer, prompts[0]
            ),
        )
        return inputs.to(self._device, self._model.dtype)

    def _letters(self, request: Request, choices: Choices) -> Response:
        ids_of = self._tokens.ids_of_letters(choices.texts)
        rows = []
        first = []
        n_read = 0
        for prompt in self._tokens.prompts(request):
            inputs = self._inputs([request], [prompt])
            n_read += inputs["input_ids"].numel()
            logits = self._model(**inputs, logits_to_keep=1).logits
            row = logits[0, -1].float().log_softmax(0)
            rows.append([row[ids].logsumexp(dim=0).item() for ids in ids_of])
            first.append(self._tokens.text(int(row.argmax())))
        return scored(choices, rows, first, len(rows), n_read)

    def _likelihoods(self, request: Request, choices: Choices) -> Response:
        [prompt] = self._tokens.prompts(request)
        split = self._tokens.split(prompt, choices.texts)
        inputs = self._inputs([request], [prompt])
        logits = self._logits(inputs, split)
        values = []
        for row, tail in zip(logits, split.tails, strict=True):
            logprobs = (
                row[: len(tail)].float().log_softmax(1)[range(len(tail)), tail]
            )
            values.append(logprobs.double().sum().item())
        return split.answer(choices, values, inputs["input_ids"].numel())

    def _logits(self, inputs: Any, split: SplitTokens) -> torch.Tensor:
        """Return logits [K, T, V] of the T tokens of the longest of K tails, by V words.

        The model reads what all tails have in common once. Padding follows the tails, so that no
        token of theirs sees it.
        """
        shape = inputs["input_ids"].shape
        shared = shape[1] - len(split.prompt) + split.start
        begin = {
            k: v[:, :shared] if v.shape == shape else v for k, v in inputs.items()
        }
        prefix = self._model(**begin, use_cache=True, logits_to_keep=1)
        # The logits of each tail's first token.
        logits: torch.Tensor = prefix.logits.expand(len(split.tails), -1, -1)
        tails = [torch.tensor(tail) for tail in split.tails]
        tokens = pad_sequence(tails, batch_first=True).to(self._device)
        if tokens.shape[1] == 1:
            return logits
        prefix.past_key_values.batch_repeat_interleave(len(tokens))
        rest = self._model(
            input_ids=tokens[:, :-1], past_key_values=prefix.past_key_values
        ).logits
        return torch.cat([logits, rest], dim=1)


make = TransformersEngine
