"""Captions and class scores through transformers, for machines on which vLLM does not run.

Letters: O choices (or orders of options) of a request, T tokens of the longest one, V words of the
vocabulary.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from latteclip.captions.engines import processors
from latteclip.captions.engines.base import Answered, CaptionerSettings, Scores, WouldWait, never
from latteclip.captions.engines.processors import Split, Tokens, exclusive
from latteclip.captions.requests import Answer, Request
from latteclip.core import devices
from latteclip.core.errors import UserError


class TransformersEngine:
    """Answers in batches, each padded to its longest prompt."""

    def __init__(self, settings: CaptionerSettings, threads: int = 1, *_: object) -> None:
        if settings.quantization is not None:
            raise UserError(
                "captioner.quantization is vLLM's; with engine transformers set it to null."
            )
        self.version = f"transformers {transformers.__version__}"
        self._device = devices.pick("auto", threads)
        self._batch_size = settings.batch_size
        self._max_new_tokens = settings.max_new_tokens
        self._processor = processors.load(settings)
        try:
            self._model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                settings.model,
                revision=settings.revision,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=settings.dtype,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {error}"
            ) from None
        self._model.eval().to(self._device)
        self._tokens = Tokens(self._processor, settings.model)

    def answer(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        source = iter(requests)
        while batch := list(itertools.islice(source, self._batch_size)):
            try:
                answers = self._answers(batch)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"The GPU's memory does not hold {len(batch)} requests at once; lower "
                    "captioner.batch_size, or set captioner.dtype to bfloat16."
                ) from None
            yield from zip(batch, answers, strict=True)

    @torch.inference_mode()
    def _answers(self, batch: Sequence[Request]) -> list[Answer]:
        choices = batch[0].choices
        if choices is None:
            return self._captions(batch)
        score = self._letters if choices.by_letters else self._likelihoods
        return [score(request) for request in batch]

    def _captions(self, batch: Sequence[Request]) -> list[Answer]:
        inputs = self._inputs(batch, [self._tokens.prompts(request)[0] for request in batch])
        options = {"do_sample": False, "max_new_tokens": self._max_new_tokens}
        written = self._model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        read = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._caption(*each) for each in zip(texts, written.tolist(), read, strict=True)]

    def _caption(self, text: str, tokens: list[int], n_read: int) -> Answer:
        """Return an answer whose tokens are padded after their end."""
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
        if length is None:
            return Answer(text, "length", len(tokens), n_read=n_read)
        return Answer(text, "stop", length, n_read=n_read)

    def _inputs(self, batch: Sequence[Request], prompts: Sequence[str]) -> Any:
        """Return pictures and prompts as the model takes them, padded on the left."""
        special = processors.adds_special_tokens(self._processor.tokenizer, prompts[0])
        return self._processor(
            images=[list(request.pictures) for request in batch],
            text=list(prompts),
            padding=True,
            return_tensors="pt",
            add_special_tokens=special,
        ).to(self._device, self._model.dtype)

    def _letters(self, request: Request) -> Answer:
        prompts = self._tokens.prompts(request)
        split = self._tokens.split_orders(prompts)
        ends = torch.tensor([len(tail) - 1 for tail in split.tails], device=self._device)
        places = ends.unique()  # logits of other places are not needed, and large
        logits = self._logits(request, prompts[0], split, places)
        rows = logits[range(len(ends)), torch.searchsorted(places, ends)].float().log_softmax(1)
        ids_of = self._tokens.ids_of_letters(request.wanted.texts)
        values = (tuple(row[ids].logsumexp(dim=0).item() for ids in ids_of) for row in rows)
        first = (self._tokens.text(int(row.argmax())) for row in rows)
        return Scores(tuple(values), tuple(first)).as_answer(len(rows))

    def _likelihoods(self, request: Request) -> Answer:
        [prompt] = self._tokens.prompts(request)
        split = self._tokens.split(prompt, request.wanted.texts)
        places = torch.arange(max(map(len, split.tails)), device=self._device)
        logits = self._logits(request, prompt, split, places)
        values = []
        for row, tail in zip(logits, split.tails, strict=True):
            found = row[: len(tail)].float().log_softmax(1)[range(len(tail)), tail]
            values.append(found.double().sum().item())
        row = tuple(exclusive(values, split.tails))
        return Scores((row,)).as_answer(split.n_tokens)

    def _logits(
        self, request: Request, prompt: str, split: Split, places: torch.Tensor
    ) -> torch.Tensor:
        """Return logits [O, places, V] of the tokens at ascending places of the tails.

        The model reads what all tails have in common once. Padding follows the tails, so that no
        token of theirs sees it.
        """
        inputs = self._inputs([request], [prompt])
        shape = inputs["input_ids"].shape
        shared = shape[1] - len(split.prompt) + split.start
        begin = {k: v[:, :shared] if v.shape == shape else v for k, v in inputs.items()}
        prefix = self._model(**begin, use_cache=True, logits_to_keep=1)
        n, later = len(split.tails), places[places > 0]
        logits: torch.Tensor = prefix.logits.expand(n, -1, -1)  # of the first place
        if not len(later):
            return logits
        prefix.past_key_values.batch_repeat_interleave(n)
        tokens = pad_sequence([*map(torch.tensor, split.tails)], batch_first=True).to(self._device)
        rest = self._model(
            input_ids=tokens[:, :-1],
            past_key_values=prefix.past_key_values,
            logits_to_keep=later - 1,
        ).logits
        return torch.cat([logits, rest], dim=1) if len(later) < len(places) else rest
