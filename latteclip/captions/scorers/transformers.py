"""Scores through transformers: the picture and the prompt are computed once for all choices.

Letters: B requests of a batch, O choices of all of them, P tokens of the longest prompt, T tokens
of the longest choice, V words of the vocabulary.
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
        prefix = self._model(**inputs, use_cache=True, logits_to_keep=1)
        tails = _Tails(splits, cut, self._device)
        values = iter(self._of_tails(inputs["attention_mask"], prefix, tails))
        return [
            as_answer(
                Scores(tuple(exclusive([next(values) for _ in split.tails], split.tails))),
                sum(map(len, split.tails)),
            )
            for split in splits
        ]

    def _of_tails(self, mask: Any, prefix: Any, tails: "_Tails") -> list[float]:
        """The log-probability of each of the O choices.

        Args:
            mask: attention mask of the prompts, [B, P].
            prefix: what the model made of them: logits of the last token [B, 1, V], and a cache.
            tails: what follows.
        """
        import torch

        logits = prefix.logits[tails.owners]  # [O, 1, V]
        if tails.tokens.shape[1] > 1:
            cache = prefix.past_key_values
            cache.batch_select_indices(tails.owners)
            whole = torch.cat([mask[tails.owners], tails.real[:, :-1]], dim=1)  # [O, P + T - 1]
            rest = self._model(
                input_ids=tails.tokens[:, :-1],
                attention_mask=whole,
                past_key_values=cache,
                **self._positions(whole, tails),
            )
            logits = torch.cat([logits, rest.logits], dim=1)  # [O, T, V]
        values = -torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), tails.tokens, reduction="none"
        )  # [O, T]
        sums: list[float] = values.double().masked_fill(~tails.counted, 0.0).sum(dim=1).tolist()
        return sums

    def _positions(self, mask: Any, tails: "_Tails") -> dict[str, Any]:
        """Positions of the tails, for models in which a picture takes fewer than its tokens.

        Any other model counts on from its cache.
        """
        deltas = getattr(self._model.base_model, "rope_deltas", None)  # [B, 1]
        if deltas is None:
            return {}
        width = tails.tokens.shape[1] - 1
        positions = mask.cumsum(dim=1)[:, -width:] - 1 + deltas[tails.owners]
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


class _Tails:
    """The choices of a batch as the model reads them after the prompts.

    Attributes:
        owners: [O], whose they are.
        tokens: [O, T], padded on the right.
        real: [O, T], 0 where they are padded.
        counted: bool [O, T], whether a token is part of the choice's score.
    """

    def __init__(self, splits: Sequence[Split], cut: int, device: Any) -> None:
        """Put together what the splits say; the prompts lack their last `cut` tokens."""
        import torch

        owners, tokens, real, counted = [], [], [], []
        width = max(cut - len(s.prompt) + s.start + len(tail) for s in splits for tail in s.tails)
        for owner, split in enumerate(splits):
            # What is cut and is no choice's own: all choices of this prompt begin with it.
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


def _shortened(inputs: Any, cut: int) -> Any:
    """Inputs without the last tokens of each prompt."""
    if not cut:
        return inputs
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :-cut] if value.shape == shape else value for name, value in inputs.items()
    }
