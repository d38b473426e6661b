"""Captions and class scores through transformers, for machines on which vLLM does not run.

Letters: B requests of a batch, O choices of all of them, P tokens of the longest prompt, T tokens
of the longest choice, V words of the vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from latteclip.captions.engines import processors
from latteclip.captions.engines.base import (
    MULTIPLE_CHOICE,
    Answered,
    CaptionerSettings,
    Scores,
    WouldWait,
    never,
)
from latteclip.captions.engines.processors import Split, Tokens, exclusive
from latteclip.captions.requests import Answer, Request
from latteclip.core import devices
from latteclip.core.errors import UserError


class TransformersEngine:
    """Answers in batches, each padded to its longest prompt."""

    def __init__(
        self,
        settings: CaptionerSettings,
        threads: int = 1,
        pictures: int = 1,
        scoring: bool = False,
    ) -> None:
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

    def generate(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        source = iter(requests)
        while batch := list(itertools.islice(source, self._batch_size)):
            yield from zip(batch, self._computed(self._answers, batch), strict=True)

    def _computed(
        self, answer: Callable[[Sequence[Request]], list[Answer]], batch: Sequence[Request]
    ) -> list[Answer]:
        """Return the answers to a batch.

        Raises:
            UserError: the GPU's memory is too small for it.
        """
        try:
            with torch.inference_mode():
                return answer(batch)
        except torch.OutOfMemoryError:
            raise UserError(
                f"The GPU's memory does not hold {len(batch)} requests at once; lower "
                "captioner.batch_size, or set captioner.dtype to bfloat16."
            ) from None

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        prompts = [
            processors.as_text(self._processor, len(request.pictures), request.prompt)
            for request in requests
        ]
        inputs = self._inputs(requests, prompts)
        options = {"do_sample": False, "max_new_tokens": self._max_new_tokens}
        written = self._model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        read = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._answer(*each) for each in zip(texts, written.tolist(), read, strict=True)]

    def _answer(self, text: str, tokens: list[int], n_read: int) -> Answer:
        """Return an answer whose tokens are padded after their end."""
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
        if length is None:
            return Answer(text, "length", len(tokens), n_read=n_read)
        return Answer(text, "stop", length, n_read=n_read)

    def _inputs(self, requests: Sequence[Request], prompts: Sequence[str]) -> Any:
        """Return pictures and prompts as the model takes them, padded on the left."""
        special = processors.adds_special_tokens(self._processor.tokenizer, prompts[0])
        return self._processor(
            images=[list(request.pictures) for request in requests],
            text=list(prompts),
            padding=True,
            return_tensors="pt",
            add_special_tokens=special,
        ).to(self._device, self._model.dtype)

    def score(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        for batch in self._batches(requests):
            letters = batch[0].wanted.kind == MULTIPLE_CHOICE
            score = self._letters if letters else self._likelihoods
            yield from zip(batch, self._computed(score, batch), strict=True)

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Yield requests, so many that their rows in the model are at most `batch_size`."""
        batch: list[Request] = []
        rows = 0
        for request in requests:
            n = len(request.wanted.prompts or request.wanted.texts)
            if batch and rows + n > self._batch_size:
                yield batch
                batch, rows = [], 0
            batch.append(request)
            rows += n
        if batch:
            yield batch

    def _letters(self, batch: Sequence[Request]) -> list[Answer]:
        """Score all orders of the options; what their prompts begin with is computed once."""
        prompts = [self._tokens.prompts(request) for request in batch]
        splits = [self._tokens.split_orders(each) for each in prompts]
        tails, prefix, mask = self._prefix(batch, [each[0] for each in prompts], splits)
        ends = tails.real.sum(dim=1) - 1  # [O], where the answer stands
        places = ends.unique()  # logits of other places are not needed, and large
        logits = self._logits(prefix, mask, tails, places)
        rows = logits[range(len(ends)), torch.searchsorted(places, ends)].float().log_softmax(1)
        return [self._of_letters(*each) for each in zip(batch, tails.by_owner(rows), strict=True)]

    def _of_letters(self, request: Request, rows: torch.Tensor) -> Answer:
        ids_of = self._tokens.ids_of_letters(request.wanted.texts)
        values = (tuple(row[ids].logsumexp(dim=0).item() for ids in ids_of) for row in rows)
        first = (self._tokens.text(int(row.argmax())) for row in rows)
        return Scores(tuple(values), tuple(first)).as_answer(len(rows))

    def _likelihoods(self, batch: Sequence[Request]) -> list[Answer]:
        prompts = [self._tokens.prompts(request)[0] for request in batch]
        splits = [
            self._tokens.split(prompt, request.wanted.texts)
            for prompt, request in zip(prompts, batch, strict=True)
        ]
        tails, prefix, mask = self._prefix(batch, prompts, splits)
        places = torch.arange(tails.tokens.shape[1], device=mask.device)
        logits = self._logits(prefix, mask, tails, places).float().transpose(1, 2)  # [O, V, T]
        found = -torch.nn.functional.cross_entropy(logits, tails.tokens, reduction="none")
        sums = found.double().masked_fill(~tails.counted, 0.0).sum(dim=1)  # [O]
        return [
            Scores((tuple(exclusive(values.tolist(), split.tails)),)).as_answer(
                sum(map(len, split.tails))
            )
            for values, split in zip(tails.by_owner(sums), splits, strict=True)
        ]

    def _prefix(
        self, batch: Sequence[Request], prompts: Sequence[str], splits: Sequence[Split]
    ) -> tuple["_Tails", Any, torch.Tensor]:
        """Let the model read what the tails of each request have in common.

        Returns:
            The tails, the model's output for the prompts, and their attention mask [B, P].
        """
        # Prompts of a batch lose equally many tokens, which are left to the tails.
        cut = max(len(split.prompt) - split.start for split in splits)
        inputs = dict(self._inputs(batch, prompts))
        shape = inputs["input_ids"].shape
        for name, value in inputs.items():
            if value.shape == shape:
                inputs[name] = value[:, : shape[1] - cut]
        prefix = self._model(**inputs, use_cache=True, logits_to_keep=1)
        return _Tails(splits, cut, self._device), prefix, inputs["attention_mask"]

    def _logits(
        self, prefix: Any, mask: torch.Tensor, tails: "_Tails", places: torch.Tensor
    ) -> torch.Tensor:
        """Return logits [O, places, V] of tokens at ascending places of the tails."""
        logits: torch.Tensor = prefix.logits[tails.owners]  # [O, 1, V], of the first place
        later = places[places > 0]
        if not len(later):
            return logits
        cache = prefix.past_key_values
        cache.batch_select_indices(tails.owners)
        whole = torch.cat([mask[tails.owners], tails.real[:, :-1]], dim=1)  # [O, P + T - 1]
        positions = {}
        # Of models whose pictures take fewer positions than tokens. Others count on.
        deltas = getattr(self._model.base_model, "rope_deltas", None)  # [B, 1]
        if deltas is not None:
            counted = whole.cumsum(dim=1)[:, mask.shape[1] :] - 1 + deltas[tails.owners]
            positions["position_ids"] = counted.expand(3, -1, -1)
        rest = self._model(
            input_ids=tails.tokens[:, :-1],
            attention_mask=whole,
            past_key_values=cache,
            logits_to_keep=later - 1,
            **positions,
        ).logits
        return torch.cat([logits, rest], dim=1) if len(later) < len(places) else rest


class _Tails:
    """The choices of a batch as the model reads them after the prompts, padded on the right."""

    def __init__(self, splits: Sequence[Split], cut: int, device: torch.device) -> None:
        """Collect the tails of splits whose prompts lack their last `cut` tokens."""
        self._sizes = [len(split.tails) for split in splits]
        # The tokens that are cut from the prompt: all its choices begin with them.
        shared = [split.prompt[len(split.prompt) - cut : split.start] for split in splits]
        texts = [
            [*begin, *tail]
            for begin, split in zip(shared, splits, strict=True)
            for tail in split.tails
        ]
        with device:
            # Whose the choices are: [O].
            self.owners = torch.arange(len(splits)).repeat_interleave(torch.tensor(self._sizes))
            begins = torch.tensor([[len(begin)] for begin in shared])[self.owners]
            lengths = torch.tensor([[len(text)] for text in texts])
            self.tokens = pad_sequence([*map(torch.tensor, texts)], batch_first=True)  # [O, T]
            places = torch.arange(self.tokens.shape[1])
            self.real = (places < lengths).long()  # [O, T], 0 where they are padded
            self.counted = (begins <= places) & (places < lengths)  # [O, T], part of a score

    def by_owner(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the values of O tails, in a tensor for each request."""
        parts: tuple[torch.Tensor, ...] = values.split(self._sizes)
        return parts
