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
from latteclip.captions.requests import Request, choices_of
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
            choices = choices_of(request)
            n = len(choices.prompts if choices.kind == LETTERS else choices.texts)
            if batch and rows + n > self._batch_size:
                yield batch
                batch, rows = [], 0
            batch.append(request)
            rows += n
        if batch:
            yield batch

    def _letters(self, batch: Sequence[Request]) -> list[Answer]:
        """All orders of the options: what their prompts begin with is computed once."""
        import torch

        prompts = [self._tokens.prompts(request) for request in batch]
        splits = [self._tokens.split_orders(each) for each in prompts]
        tails, prefix, mask = self._prefix(batch, [each[0] for each in prompts], splits)
        ends = tails.real.sum(dim=1) - 1  # [O], where the answer stands
        kept = ends.unique()  # logits of other places are none of ours, and large
        logits = self._logits(prefix, mask, tails, kept)
        rows = logits[range(len(ends)), torch.searchsorted(kept, ends)].float()
        found = _shared_out(rows.log_softmax(dim=1), splits)
        return [self._of_letters(*pair) for pair in zip(batch, found, strict=True)]

    def _of_letters(self, request: Request, rows: Sequence[Any]) -> Answer:
        """Scores of letters from the log-probabilities [V] of the first token in each order."""
        letters = choices_of(request).texts
        if letters not in self._ids_of:
            self._ids_of[letters] = self._tokens.ids_of_letters(letters)
        ids_of = self._ids_of[letters]
        values = (tuple(row[ids].logsumexp(dim=0).item() for ids in ids_of) for row in rows)
        first = (self._tokens.text(int(row.argmax())) for row in rows)
        return as_answer(Scores(tuple(values), tuple(first)), len(rows))

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
            as_answer(Scores((tuple(exclusive(values, split.tails)),)), sum(map(len, split.tails)))
            for values, split in zip(_shared_out(sums, splits), splits, strict=True)
        ]

    def _prefix(
        self, batch: Sequence[Request], prompts: Sequence[str], splits: Sequence[Split]
    ) -> tuple["_Tails", Any, Any]:
        """Let the model read what the tails of each request have in common.

        Returns:
            The tails; what the model made of the prompts, logits of the last token [B, 1, V] and a
            cache; their attention mask [B, P].
        """
        # Prompts of a batch lose equally many tokens, which are left to the tails.
        cut = max(len(split.prompt) - split.start for split in splits)
        inputs = _shortened(self._inputs(batch, prompts), cut)
        prefix = self._model(**inputs, use_cache=True, logits_to_keep=1)
        return _Tails(splits, cut, self._device), prefix, inputs["attention_mask"]

    def _logits(self, prefix: Any, mask: Any, tails: "_Tails", places: Any) -> Any:
        """Logits [O, places, V] of the tokens at some places of the tails, which are ascending."""
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
        """Positions of the tails, for models in which a picture takes fewer than its tokens.

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


def _shared_out(values: Iterable[Any], splits: Sequence[Split]) -> list[list[Any]]:
    """What each of O tails has, by the request that it belongs to."""
    rest = iter(values)
    return [[next(rest) for _ in split.tails] for split in splits]


def _shortened(inputs: Any, cut: int) -> Any:
    """Inputs without the last tokens of each prompt."""
    if not cut:
        return inputs
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :-cut] if value.shape == shape else value for name, value in inputs.items()
    }
