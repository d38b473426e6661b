"""Scores through transformers: the picture and the prompt are computed once for all choices.

Letters: B requests of a batch, K choices of a request, O choices of all of them, P tokens of the
longest prompt, T tokens of the longest choice, V words of the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from latteclip.captions.answers import Answer
from latteclip.captions.class_questions import LETTERS
from latteclip.captions.engines.base import CaptionerSettings, never
from latteclip.captions.engines.transformers import TransformersCaptioner
from latteclip.captions.request import Request, choices_of
from latteclip.captions.scorers.tokens import Split, Tokens, exclusive
from latteclip.captions.scores import Scores, as_answer
from latteclip.core.errors import UserError


class TransformersScorer(TransformersCaptioner):
    """Scores in batches of at most `batch_size` choices."""

    def __init__(self, settings: CaptionerSettings, threads: int = 1, pictures: int = 1) -> None:
        super().__init__(settings, threads, pictures)
        self._tokens = Tokens(self._processor, settings.model)
        self._ids_of: dict[tuple[str, ...], list[list[int]]] = {}  # letters to their tokens

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        import torch

        for batch in self._batches(requests):
            letters = choices_of(batch[0]).kind == LETTERS
            try:
                with torch.inference_mode():
                    scored = self._letters(batch) if letters else self._likelihoods(batch)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"The GPU's memory does not hold {len(batch)} requests at once; lower "
                    "captioner.batch_size, or set captioner.dtype to bfloat16."
                ) from None
            yield from zip(batch, scored, strict=True)

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Requests, so many that their rows in the model are at most `batch_size`."""
        batch: list[Request] = []
        rows = 0
        for request in requests:
            n = 1 if choices_of(request).kind == LETTERS else len(choices_of(request).texts)
            if batch and rows + n > self._batch_size:
                yield batch
                batch, rows = [], 0
            batch.append(request)
            rows += n
        if batch:
            yield batch

    def _letters(self, batch: Sequence[Request]) -> list[Answer]:
        inputs = self._inputs(batch, [self._tokens.prompt(request) for request in batch])
        logits = self._model(**inputs, logits_to_keep=1).logits[:, -1]  # [B, V]
        rows = logits.float().log_softmax(dim=1)
        return [self._of_letters(*pair) for pair in zip(batch, rows, strict=True)]

    def _of_letters(self, request: Request, row: Any) -> Answer:
        """Scores of letters from the log-probabilities [V] of the first token."""
        letters = choices_of(request).texts
        if letters not in self._ids_of:
            self._ids_of[letters] = self._tokens.ids_of_letters(letters)
        values = tuple(row[ids].logsumexp(dim=0).item() for ids in self._ids_of[letters])
        return as_answer(Scores(values, self._tokens.text(int(row.argmax()))), 1)

    def _likelihoods(self, batch: Sequence[Request]) -> list[Answer]:
        prompts = [self._tokens.prompt(request) for request in batch]
        splits = [
            self._tokens.split(prompt, choices_of(request).texts)
            for prompt, request in zip(prompts, batch, strict=True)
        ]
        # Where a choice changes the last tokens of a prompt, they are left to the choices.
        cut = max(len(split.prompt) - split.start for split in splits)
        inputs = _shortened(self._inputs(batch, prompts), cut)
        found = self._model(**inputs, use_cache=True, logits_to_keep=1)
        values = self._of_tails(inputs["attention_mask"], found, splits, cut)
        return [
            as_answer(Scores(tuple(exclusive(part, split.tails))), sum(map(len, split.tails)))
            for part, split in zip(values, splits, strict=True)
        ]

    def _of_tails(
        self, mask: Any, prefix: Any, splits: Sequence[Split], cut: int
    ) -> list[list[float]]:
        """The log-probability of each choice of each request.

        Args:
            mask: attention mask of the prompts, [B, P].
            prefix: what the model made of them: logits of the last token [B, 1, V], and a cache.
            splits: B of them.
            cut: tokens of the prompts that were left to the choices.
        """
        import torch

        owners = [row for row, split in enumerate(splits) for _ in split.tails]  # O
        # A tail begins where the prompts were cut; what all choices of a request share is skipped.
        skips = [split.start - len(split.prompt) + cut for split in splits]
        tails = [
            [*split.prompt[len(split.prompt) - cut : split.start], *tail]
            for split in splits
            for tail in split.tails
        ]
        width = max(map(len, tails))
        tokens = torch.tensor([[*tail, *[0] * (width - len(tail))] for tail in tails])
        real = torch.tensor([[1] * len(tail) + [0] * (width - len(tail)) for tail in tails])
        tokens, real = tokens.to(mask.device), real.to(mask.device)  # both [O, T]
        logits = prefix.logits[owners]  # [O, 1, V]
        if width > 1:
            cache = prefix.past_key_values
            cache.batch_select_indices(torch.tensor(owners, device=mask.device))
            whole = torch.cat([mask[owners], real[:, :-1]], dim=1)  # [O, P + T - 1]
            rest = self._model(
                input_ids=tokens[:, :-1],
                attention_mask=whole,
                past_key_values=cache,
                **self._positions(whole, owners, width - 1),
            )
            logits = torch.cat([logits, rest.logits], dim=1)  # [O, T, V]
        values = -torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), tokens, reduction="none"
        )  # [O, T]
        counted = real.bool()
        counted &= torch.arange(width, device=mask.device) >= torch.tensor(
            [[skips[row]] for row in owners], device=mask.device
        )
        sums = values.double().masked_fill(~counted, 0.0).sum(dim=1).tolist()
        return [
            [value for value, owner in zip(sums, owners, strict=True) if owner == row]
            for row in range(len(splits))
        ]

    def _positions(self, mask: Any, owners: Sequence[int], width: int) -> dict[str, Any]:
        """Positions of the last tokens, for models in which a picture takes fewer than its tokens.

        Any other model counts on from its cache.
        """
        deltas = getattr(self._model.base_model, "rope_deltas", None)  # [B, 1]
        if deltas is None:
            return {}
        positions = mask.cumsum(dim=1)[:, -width:] - 1 + deltas[owners]
        return {"position_ids": positions.expand(3, -1, -1)}

    def _inputs(self, requests: Sequence[Request], prompts: Sequence[str]) -> Any:
        """Pictures and prompts as the model takes them, padded on the left."""
        return self._processor(
            images=[list(request.pictures) for request in requests],
            text=list(prompts),
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._tokens.adds_special(prompts[0]),
        ).to(self._device, self._model.dtype)


def _shortened(inputs: Any, cut: int) -> Any:
    """Inputs without the last tokens of each prompt."""
    if not cut:
        return inputs
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :-cut] if value.shape == shape else value for name, value in inputs.items()
    }
