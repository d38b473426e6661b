"""Captions and class scores through transformers, for machines on which vLLM does not run.

Of scores the picture and the prompt are computed once for all choices.

Letters: R requests of a batch, B of them with choices, O choices of all of them, P tokens of the
longest prompt, T tokens of the longest choice, V words of the vocabulary.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from latteclip.captions.answer_cache import Answer
from latteclip.captions.engines import processors
from latteclip.captions.engines.base import MULTIPLE_CHOICE, CaptionerSettings, Scores, never
from latteclip.captions.engines.processors import Split, Tokens, exclusive
from latteclip.captions.requests import Request, choices_of
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
        import torch
        import transformers

        if settings.quantization is not None:
            raise UserError(
                "captioner.quantization is vLLM's; with engine transformers set it to null."
            )

        from latteclip.core import devices

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
                dtype=settings.dtype
                if settings.dtype == "auto"
                else getattr(torch, settings.dtype),
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {error}"
            ) from None
        self._model.eval().to(self._device)
        self._tokens = Tokens(self._processor, settings.model)
        self._ids_of: dict[tuple[str, ...], list[list[int]]] = {}  # letters to their tokens

    def generate(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with its answer; see `Engine`."""
        source = iter(requests)
        while batch := list(itertools.islice(source, self._batch_size)):
            with _memory_explained(len(batch)):
                answers = self._answers(batch)
            yield from zip(batch, answers, strict=True)

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Return one answer for each of the R requests, in order."""
        import torch

        prompts = [
            processors.as_text(self._processor, len(request.pictures), request.prompt)
            for request in requests
        ]
        inputs = self._inputs(requests, prompts)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
            )[:, inputs["input_ids"].shape[1] :]  # [R, new tokens], padded after the end
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        lengths = self._lengths(tokens)
        read = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            Answer(text, "stop" if ended else "length", length, n_read=n)
            for text, (length, ended), n in zip(texts, lengths, read, strict=True)
        ]

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

    def _lengths(self, tokens: Any) -> list[tuple[int, bool]]:
        """Return of each row its number of tokens up to the end token, and if it has one."""
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        result = []
        for row in tokens.tolist():
            end = next((i for i, token in enumerate(row) if token in ends), None)
            result.append((len(row), False) if end is None else (end + 1, True))
        return result

    def score(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with the scores of its choices; see `Engine`.

        A batch has at most `batch_size` choices.
        """
        import torch

        for batch in self._batches(requests):
            letters = choices_of(batch[0]).kind == MULTIPLE_CHOICE
            with _memory_explained(len(batch)), torch.inference_mode():
                scored = self._letters(batch) if letters else self._likelihoods(batch)
            yield from zip(batch, scored, strict=True)

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Yield requests, so many that their rows in the model are at most `batch_size`."""
        batch: list[Request] = []
        rows = 0
        for request in requests:
            choices = choices_of(request)
            n = len(choices.prompts if choices.kind == MULTIPLE_CHOICE else choices.texts)
            if batch and rows + n > self._batch_size:
                yield batch
                batch, rows = [], 0
            batch.append(request)
            rows += n
        if batch:
            yield batch

    def _letters(self, batch: Sequence[Request]) -> list[Answer]:
        """Score all orders of the options; what their prompts begin with is computed once."""
        import torch

        prompts = [self._tokens.prompts(request) for request in batch]
        splits = [self._tokens.split_orders(each) for each in prompts]
        tails, prefix, mask = self._prefix(batch, [each[0] for each in prompts], splits)
        ends = tails.real.sum(dim=1) - 1  # [O], where the answer stands
        places = ends.unique()  # logits of other places are not needed, and large
        logits = self._logits(prefix, mask, tails, places)
        rows = logits[range(len(ends)), torch.searchsorted(places, ends)].float()
        found = _shared_out(rows.log_softmax(dim=1), splits)
        return [self._of_letters(*pair) for pair in zip(batch, found, strict=True)]

    def _of_letters(self, request: Request, rows: Sequence[Any]) -> Answer:
        """Return the scores of letters from log-probabilities [V] of the first tokens."""
        letters = choices_of(request).texts
        if letters not in self._ids_of:
            self._ids_of[letters] = self._tokens.ids_of_letters(letters)
        ids_of = self._ids_of[letters]
        values = (tuple(row[ids].logsumexp(dim=0).item() for ids in ids_of) for row in rows)
        first = (self._tokens.text(int(row.argmax())) for row in rows)
        return Scores(tuple(values), tuple(first)).as_answer(len(rows))

    def _likelihoods(self, batch: Sequence[Request]) -> list[Answer]:
        import torch

        prompts = [self._tokens.prompts(request)[0] for request in batch]
        splits = [
            self._tokens.split(prompt, choices_of(request).texts)
            for prompt, request in zip(prompts, batch, strict=True)
        ]
        tails, prefix, mask = self._prefix(batch, prompts, splits)
        places = torch.arange(tails.tokens.shape[1], device=mask.device)
        logits = self._logits(prefix, mask, tails, places)  # [O, T, V]
        found = -torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), tails.tokens, reduction="none"
        )  # [O, T]
        sums = found.double().masked_fill(~tails.counted, 0.0).sum(dim=1).tolist()
        return [
            Scores((tuple(exclusive(values, split.tails)),)).as_answer(sum(map(len, split.tails)))
            for values, split in zip(_shared_out(sums, splits), splits, strict=True)
        ]

    def _prefix(
        self, batch: Sequence[Request], prompts: Sequence[str], splits: Sequence[Split]
    ) -> tuple["_Tails", Any, Any]:
        """Let the model read what the tails of each request have in common.

        Returns:
            The tails. The model's output for the prompts: logits of the last token [B, 1, V] and a
            cache. The attention mask [B, P] of the prompts.
        """
        # Prompts of a batch lose equally many tokens, which are left to the tails.
        cut = max(len(split.prompt) - split.start for split in splits)
        inputs = _shortened(self._inputs(batch, prompts), cut)
        prefix = self._model(**inputs, use_cache=True, logits_to_keep=1)
        return _Tails(splits, cut, self._device), prefix, inputs["attention_mask"]

    def _logits(self, prefix: Any, mask: Any, tails: "_Tails", places: Any) -> Any:
        """Return logits [O, places, V] of tokens at ascending places of the tails."""
        import torch

        logits = prefix.logits[tails.owners]  # [O, 1, V], of the first place
        later = places[places > 0]
        if not len(later):
            return logits
        cache = prefix.past_key_values
        cache.batch_select_indices(tails.owners)
        whole = torch.cat([mask[tails.owners], tails.real[:, :-1]], dim=1)  # [O, P + T - 1]
        rest = self._model(
            input_ids=tails.tokens[:, :-1],
            attention_mask=whole,
            past_key_values=cache,
            logits_to_keep=later - 1,
            **self._positions(whole, tails),
        )
        return torch.cat([logits, rest.logits], dim=1) if len(later) < len(places) else rest.logits

    def _positions(self, mask: Any, tails: "_Tails") -> dict[str, Any]:
        """Return positions of the tails, for models whose pictures take fewer than their tokens.

        Any other model counts on from its cache.
        """
        deltas = getattr(self._model.base_model, "rope_deltas", None)  # [B, 1]
        if deltas is None:
            return {}
        width = tails.tokens.shape[1] - 1
        positions = mask.cumsum(dim=1)[:, -width:] - 1 + deltas[tails.owners]
        return {"position_ids": positions.expand(3, -1, -1)}


class _Tails:
    """The choices of a batch as the model reads them after the prompts.

    Attributes:
        owners: [O], whose they are.
        tokens: [O, T], padded on the right.
        real: [O, T], 0 where they are padded.
        counted: bool [O, T], whether a token is part of the choice's score.
    """

    def __init__(self, splits: Sequence[Split], cut: int, device: Any) -> None:
        """Collect the tails of splits whose prompts lack their last `cut` tokens."""
        import torch

        owners, tokens, real, counted = [], [], [], []
        width = max(cut - len(s.prompt) + s.start + len(tail) for s in splits for tail in s.tails)
        for owner, split in enumerate(splits):
            # The tokens that are cut from the prompt: all its choices begin with them.
            shared = split.prompt[len(split.prompt) - cut : split.start]
            for tail in split.tails:
                n, rest = len(shared), width - len(shared) - len(tail)
                owners.append(owner)
                tokens.append([*shared, *tail, *[0] * rest])
                real.append([1] * (n + len(tail)) + [0] * rest)
                counted.append([False] * n + [True] * len(tail) + [False] * rest)
        self.owners, self.tokens, self.real, self.counted = (
            torch.tensor(rows, device=device) for rows in (owners, tokens, real, counted)
        )


def _shared_out(values: Iterable[Any], splits: Sequence[Split]) -> list[list[Any]]:
    """Group the values of O tails by the request that they belong to."""
    rest = iter(values)
    return [[next(rest) for _ in split.tails] for split in splits]


def _shortened(inputs: Any, cut: int) -> Any:
    """Return inputs without the last tokens of each prompt."""
    if not cut:
        return inputs
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :-cut] if value.shape == shape else value for name, value in inputs.items()
    }


@contextlib.contextmanager
def _memory_explained(requests: int) -> Iterator[None]:
    """Turn an error of a full GPU into a sentence with a remedy."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"The GPU's memory does not hold {requests} requests at once; lower "
            "captioner.batch_size, or set captioner.dtype to bfloat16."
        ) from None
