"""Scores through vLLM's offline engine.

vLLM keeps no prefix for log-probabilities of a prompt: each choice is a request of its own, and
the picture is computed anew for it. Letters need one request.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from latteclip.captions.answers import Answer
from latteclip.captions.class_questions import LETTERS
from latteclip.captions.engines.base import CaptionerSettings, never
from latteclip.captions.engines.vllm import VllmCaptioner, external_id
from latteclip.captions.request import Request, choices_of
from latteclip.captions.scorers.tokens import Split, Tokens, exclusive
from latteclip.captions.scores import Scores, as_answer, summed


@dataclass(frozen=True)
class _Part:
    """What vLLM is asked at once: a choice of a request, or all of its letters."""

    request: Request
    number: int
    split: Split | None  # None: letters

    @property
    def of(self) -> int:
        """Parts of the request."""
        return 1 if self.split is None else len(self.split.tails)


class VllmScorer(VllmCaptioner):
    """Keeps vLLM's scheduler full of choices."""

    def __init__(self, settings: CaptionerSettings, threads: int, pictures: int) -> None:
        super().__init__(settings, threads, pictures)
        import transformers
        import vllm

        processor = transformers.AutoProcessor.from_pretrained(
            settings.model, revision=settings.revision, trust_remote_code=False
        )
        self._tokens = Tokens(processor, settings.model)
        self._ids_of: dict[tuple[str, ...], list[list[int]]] = {}  # letters to their tokens
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
            if choices_of(request).kind == LETTERS:
                yield _Part(request, 0, None)
                continue
            split = self._tokens.split(self._tokens.prompt(request), choices_of(request).texts)
            for number in range(len(split.tails)):
                yield _Part(request, number, split)

    def _enqueue_part(self, part: _Part) -> str:
        """Hand a part over; returns the id that its output will bear."""
        if part.split is None:
            ids = self._tokens.ids(self._tokens.prompt(part.request))
            letters = self._ids_of_letters(choices_of(part.request).texts)
            wanted: dict[str, Any] = {
                "logprob_token_ids": [number for each in letters for number in each]
            }
        else:
            ids = part.split.prompt[: part.split.start] + part.split.tails[part.number]
            wanted = {"prompt_logprobs": 0}  # of the tokens of the prompt themselves
        prompt: Any = {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": list(part.request.pictures)},
        }
        sampling = self._sampling_of(temperature=0.0, max_tokens=1, **wanted)
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
        if part.split is None:
            return self._of_letters(choices_of(part.request).texts, outputs[0].outputs[0])
        tails = part.split.tails
        values = [_of_tail(outputs[i].prompt_logprobs, tail) for i, tail in enumerate(tails)]
        return as_answer(Scores(tuple(exclusive(values, tails))), sum(map(len, tails)))

    def _of_letters(self, letters: tuple[str, ...], completion: Any) -> Answer:
        """Scores of letters from what vLLM says of the first token, before any masking."""
        [said] = completion.logprobs
        values = tuple(
            summed([said[number].logprob for number in ids])
            for ids in self._ids_of_letters(letters)
        )
        return as_answer(Scores(values, self._tokens.text(completion.token_ids[0])), 1)


def _of_tail(said: Any, tail: list[int]) -> float:
    """The log-probability of the last tokens of a prompt.

    Counted from the end: before them vLLM puts many tokens in the place of a picture's mark.
    """
    places = zip(said[-len(tail) :], tail, strict=True)
    return float(sum(place[number].logprob for place, number in places))
