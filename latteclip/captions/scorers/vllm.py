"""Scores through vLLM's offline engine.

vLLM keeps no prefix for log-probabilities of a prompt: each choice is a request of its own, and all
but the vision tower's part is computed anew for it. Letters need one request for each order of the
options, and these share the picture.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from latteclip.captions import processors
from latteclip.captions.answers import Answer
from latteclip.captions.class_questions import LETTERS
from latteclip.captions.engines.base import CaptionerSettings, never
from latteclip.captions.engines.vllm import VllmCaptioner, external_id
from latteclip.captions.requests import Request, choices_of
from latteclip.captions.scorers.tokens import Tokens, exclusive
from latteclip.captions.scores import Scores, as_answer, summed


@dataclass(frozen=True)
class _Part:
    """What vLLM is asked at once: about a choice of a request, or its letters in one order."""

    request: Request
    picture: str  # the name of its picture, by which vLLM knows it again
    number: int
    ids: list[int]  # the tokens that vLLM reads
    tails: list[list[int]] | None  # of the choices; None: letters

    @property
    def of(self) -> int:
        """Parts of the request."""
        return len(choices_of(self.request).prompts if self.tails is None else self.tails)


class VllmScorer(VllmCaptioner):
    """Keeps vLLM's scheduler full of choices."""

    keeps_prefixes = True
    cache_gib = 1  # a picture comes once for each choice, under the same name

    def __init__(self, settings: CaptionerSettings, threads: int, pictures: int) -> None:
        super().__init__(settings, threads, pictures)
        import vllm

        self._tokens = Tokens(processors.load(settings), settings.model)
        self._ids_of: dict[tuple[str, ...], list[list[int]]] = {}  # letters to their tokens
        self._names = map(str, itertools.count())  # of pictures
        self._sampling_of: Callable[..., Any] = vllm.SamplingParams

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        back: dict[int, dict[int, Any]] = {}  # key of a request to the outputs of its parts
        for part, output in self._run(self._parts(requests), self._enqueue_part, would_wait):
            outputs = back.setdefault(part.request.key, {})
            outputs[part.number] = output
            if len(outputs) == part.of:
                del back[part.request.key]
                yield part.request, self._scored(part, outputs)

    def _parts(self, requests: Iterable[Request]) -> Iterator[_Part]:
        for request in requests:
            name, prompts = next(self._names), self._tokens.prompts(request)
            if choices_of(request).kind == LETTERS:
                for number, prompt in enumerate(prompts):
                    yield _Part(request, name, number, self._tokens.ids(prompt), None)
                continue
            split = self._tokens.split(prompts[0], choices_of(request).texts)
            for number, tail in enumerate(split.tails):
                ids = split.prompt[: split.start] + tail
                yield _Part(request, name, number, ids, split.tails)

    def _enqueue_part(self, part: _Part) -> str:
        """Hand a part over; returns the id that its output will bear."""
        if part.tails is None:
            letters = self._ids_of_letters(choices_of(part.request).texts)
            wanted: dict[str, Any] = {
                "logprob_token_ids": [number for each in letters for number in each]
            }
        else:
            # Of the tokens of the prompt themselves, in lists and not in an object for each.
            wanted = {"prompt_logprobs": 0, "flat_logprobs": True}
        prompt: Any = {
            "prompt_token_ids": part.ids,
            "multi_modal_data": {"image": list(part.request.pictures)},
            "multi_modal_uuids": {"image": [part.picture]},
        }
        # Without this each token of the prompt becomes text, in the thread that steps the engine.
        sampling = self._sampling_of(temperature=0.0, max_tokens=1, detokenize=False, **wanted)
        [internal] = self._llm.enqueue([prompt], sampling, use_tqdm=False)
        return external_id(internal)

    def _ids_of_letters(self, letters: tuple[str, ...]) -> list[list[int]]:
        if letters not in self._ids_of:
            self._ids_of[letters] = self._tokens.ids_of_letters(letters)
        return self._ids_of[letters]

    def _scored(self, part: _Part, outputs: dict[int, Any]) -> Answer:
        """The answer to a request whose parts have all come back."""
        for output in outputs.values():
            if isinstance(output, Answer):  # an error
                return output
        if part.tails is None:
            completions = [outputs[number].outputs[0] for number in range(part.of)]
            rows = (self._of_letters(part.request, completion) for completion in completions)
            first = (self._tokens.text(completion.token_ids[0]) for completion in completions)
            return as_answer(Scores(tuple(rows), tuple(first)), part.of)
        values = [_of_tail(outputs[i].prompt_logprobs, tail) for i, tail in enumerate(part.tails)]
        row = tuple(exclusive(values, part.tails))
        return as_answer(Scores((row,)), sum(map(len, part.tails)))

    def _of_letters(self, request: Request, completion: Any) -> tuple[float, ...]:
        """Log-probabilities of letters, which vLLM tells before any masking."""
        [said] = completion.logprobs
        letters = self._ids_of_letters(choices_of(request).texts)
        return tuple(summed([said[number].logprob for number in ids]) for ids in letters)


def _of_tail(said: Any, tail: list[int]) -> float:
    """The log-probability of the last tokens of a prompt.

    Counted from the end: before them vLLM puts many tokens in the place of a picture's mark.
    """
    places = zip(said[-len(tail) :], tail, strict=True)
    return float(sum(place[number].logprob for place, number in places))
