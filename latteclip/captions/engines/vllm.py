"""vLLM's offline engine.

vLLM caches no prefix for log-probabilities of a prompt. So for each choice all but the vision
tower's part is computed again. The requests of letters share the picture.
"""

import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from latteclip.captions.engines import processors
from latteclip.captions.engines.base import (
    MULTIPLE_CHOICE,
    Answered,
    CaptionerSettings,
    Scores,
    WouldWait,
    log_sum,
    never,
)
from latteclip.captions.engines.processors import Tokens, exclusive
from latteclip.captions.engines.vllm_output import EngineOutput, explained
from latteclip.captions.requests import Answer, Request, failed, messages
from latteclip.core import gpus
from latteclip.core.errors import UserError

T = TypeVar("T")
log = logging.getLogger(__name__)
PROBE = 64  # side of a picture to try, pixels
CACHED_PROMPTS = 4096  # with their tokens
QUEUED = 2  # requests inside the engine for each one that it works on: rendered ahead
DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # FlashInfer compiles its sampler by nvcc at the first start, also where there is none
    # (vllm-project/vllm#49497). Greedy requests never use it.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
DEFAULTS_OF_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other jobs use the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # starts twice as fast
}


def _is_for_cpu() -> bool:
    """Return whether vLLM computes on the CPU here: it asks the driver.

    Nothing in this process may touch CUDA before vLLM's workers start. They are spawned, not
    forked, in case a library has touched it nevertheless.
    """
    import torch  # does not touch CUDA by itself

    os.environ |= {**DEFAULTS, **os.environ, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    gpus.refuse_unusable(torch.__version__, torch.version.cuda)
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


@dataclass(frozen=True)
class _Part:
    """One request to vLLM: a choice, or the letters in one order."""

    request: Request
    picture: str  # the name by which vLLM recognises the picture
    number: int
    of: int
    ids: list[int]  # the tokens that vLLM reads
    tails: list[list[int]] | None  # of the choices; None: letters


class VllmEngine:
    """Keeps vLLM's scheduler full: each finished request makes room for the next one."""

    def __init__(
        self, settings: CaptionerSettings, threads: int, pictures: int, scoring: bool = False
    ) -> None:
        gpus.claim(settings.tensor_parallel_size)
        on_cpu = _is_for_cpu()
        if on_cpu:
            import torch

            torch.set_num_threads(threads)
            os.environ |= {**DEFAULTS_OF_CPU, "OMP_NUM_THREADS": str(threads), **os.environ}
        elif sentence := gpus.missing_compiler():
            raise UserError(sentence)
        import vllm

        self.version = f"vllm {vllm.__version__}"
        self._output = EngineOutput()
        try:
            with self._output.collected():
                self._llm = vllm.LLM(
                    model=settings.model,
                    revision=settings.revision,
                    dtype=settings.dtype,  # type: ignore[arg-type]
                    quantization=settings.quantization,  # type: ignore[arg-type]
                    tensor_parallel_size=settings.tensor_parallel_size,
                    max_model_len=settings.max_model_len,
                    max_num_seqs=settings.batch_size,
                    gpu_memory_utilization=settings.gpu_memory_utilization,
                    # vLLM reserves memory for the most of each kind that it allows.
                    limit_mm_per_prompt={"image": pictures, "video": 0, "audio": 0},
                    # The files of transformers, which `download_captioner` fetches. A repo may also
                    # have Mistral's form of them, which vLLM would prefer.
                    config_format="hf",
                    tokenizer_mode="hf",
                    load_format="safetensors",
                    # Of scores a picture comes once for each choice, under the same name. Of
                    # captions it comes once, and to hash it would be in vain.
                    mm_processor_cache_gb=1 if scoring else 0,
                    enable_prefix_caching=scoring,
                    enforce_eager=on_cpu,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {self._reason(error)}"
            ) from None
        self._refusals = (ValueError, vllm.exceptions.VLLMClientError)
        self._ends = (RuntimeError, MemoryError, vllm.exceptions.VLLMServerError)
        self._sampling_of: Callable[..., Any] = vllm.SamplingParams
        self._sampling = vllm.SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)
        self._max_queued = QUEUED * settings.batch_size
        self._rendered = functools.lru_cache(CACHED_PROMPTS)(self._render)
        self._try_out(settings.model, pictures)
        if scoring:
            self._tokens = Tokens(processors.load(settings), settings.model)
            self._names = map(str, itertools.count())  # of pictures

    def _try_out(self, model: str, pictures: int) -> None:
        """Ask about black pictures, so that an unfit model fails before work begins."""
        [(_, answer)] = self.generate([Request(0, _blacks(pictures), "?")])
        if answer.error is not None:
            raise UserError(
                f"Captioner model {model!r} cannot be asked about pictures: {answer.error}"
            )

    def generate(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        for request, output in self._run(requests, self._enqueue, would_wait):
            yield request, output if isinstance(output, Answer) else _answer(output)

    def _run(
        self, requests: Iterable[T], enqueue: Callable[[T], str], would_wait: WouldWait
    ) -> Iterator[tuple[T, Any]]:
        """Yield each request with vLLM's output, or with an answer that has an error.

        `enqueue` gives a request to vLLM and returns the id that its output will have.
        """
        engine, source = self._llm.llm_engine, iter(requests)
        waiting: dict[str, T] = {}
        more = True
        while more or waiting:
            while more and len(waiting) < self._max_queued and not (waiting and would_wait()):
                request = next(source, None)
                if request is None:
                    more = False
                    break
                try:
                    waiting[enqueue(request)] = request
                except self._refusals as error:  # too long, or a picture that it cannot take
                    yield request, failed(explained(error))
            if not waiting:
                continue
            try:
                outputs = engine.step()
            except self._ends as error:
                raise UserError(f"vLLM stopped: {self._reason(error)}") from None
            for output in outputs:
                if output.finished:
                    yield waiting.pop(output.request_id), output

    def _reason(self, error: BaseException) -> str:
        """Return why the engine does not run; the job's log has the last lines that it printed."""
        printed = self._output.lines()
        log.info("vLLM printed:\n%s", "\n".join(printed), extra={"on_terminal": True})
        return explained(error, printed)

    def _enqueue(self, request: Request) -> str:
        prompt: Any = self._rendered(request.prompt, len(request.pictures))
        pictures = {kind: list(request.pictures) for kind in prompt["multi_modal_data"]}
        return self._queue({**prompt, "multi_modal_data": pictures}, self._sampling)

    def _queue(self, prompt: Any, sampling: Any) -> str:
        """Give a prompt to vLLM; returns the id that its output will have."""
        [number] = self._llm.enqueue([prompt], sampling, use_tqdm=False)
        return number.partition("-")[0]  # vLLM appends random characters

    def _render(self, prompt: str, pictures: int) -> Any:
        """Return the tokens of a request with black pictures, as the model's own processor does.

        `LLM.enqueue_chat` would render each request again, and never adds special tokens.
        """
        from vllm.renderers import ChatParams

        renderer = self._llm.renderer
        asks = {"add_generation_prompt": True, "tokenize": False}
        black = [{"type": "image_pil", "image_pil": each} for each in _blacks(pictures)]
        conversation: Any = messages(black, prompt)
        text: Any
        _, text = renderer.render_messages(conversation, ChatParams(chat_template_kwargs=asks))
        special = processors.adds_special_tokens(renderer.get_tokenizer(), text["prompt"])
        params = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=special)
        [tokens] = renderer.tokenize_prompts([text], params)
        return tokens

    def score(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        back: dict[int, dict[int, Any]] = {}  # key of a request to the outputs of its parts
        for part, output in self._run(self._parts(requests), self._enqueue_part, would_wait):
            outputs = back.setdefault(part.request.key, {})
            outputs[part.number] = output
            if len(outputs) == part.of:
                del back[part.request.key]
                yield part.request, self._scored(part, [outputs[n] for n in range(part.of)])

    def _parts(self, requests: Iterable[Request]) -> Iterator[_Part]:
        for request in requests:
            name, prompts, tails = next(self._names), self._tokens.prompts(request), None
            if request.wanted.kind == MULTIPLE_CHOICE:
                texts = [*map(self._tokens.ids, prompts)]
            else:
                split = self._tokens.split(prompts[0], request.wanted.texts)
                tails = split.tails
                texts = [split.prompt[: split.start] + tail for tail in tails]
            for number, ids in enumerate(texts):
                yield _Part(request, name, number, len(texts), ids, tails)

    def _enqueue_part(self, part: _Part) -> str:
        if part.tails is None:
            ids_of = self._tokens.ids_of_letters(part.request.wanted.texts)
            wanted: dict[str, Any] = {"logprob_token_ids": list(itertools.chain(*ids_of))}
        else:
            # Of the tokens of the prompt themselves, in lists and not in an object for each.
            wanted = {"prompt_logprobs": 0, "flat_logprobs": True}
        prompt = {
            "prompt_token_ids": part.ids,
            "multi_modal_data": {"image": list(part.request.pictures)},
            "multi_modal_uuids": {"image": [part.picture]},
        }
        # Without this each token of the prompt becomes text, in the thread that steps the engine.
        sampling = self._sampling_of(temperature=0.0, max_tokens=1, detokenize=False, **wanted)
        return self._queue(prompt, sampling)

    def _scored(self, part: _Part, outputs: list[Any]) -> Answer:
        """Return the answer to a request whose parts have all come back."""
        for output in outputs:
            if isinstance(output, Answer):  # an error
                return output
        if part.tails is None:
            completions = [output.outputs[0] for output in outputs]
            rows = (self._of_letters(part.request, completion) for completion in completions)
            first = (self._tokens.text(completion.token_ids[0]) for completion in completions)
            return Scores(tuple(rows), tuple(first)).as_answer(part.of)
        pairs = zip(outputs, part.tails, strict=True)
        values = [_of_tail(output.prompt_logprobs, tail) for output, tail in pairs]
        row = tuple(exclusive(values, part.tails))
        return Scores((row,)).as_answer(sum(map(len, part.tails)))

    def _of_letters(self, request: Request, completion: Any) -> tuple[float, ...]:
        """Return log-probabilities of letters, which vLLM computes before any masking."""
        [logprobs] = completion.logprobs
        letters = self._tokens.ids_of_letters(request.wanted.texts)
        return tuple(log_sum([logprobs[number].logprob for number in ids]) for ids in letters)


def _blacks(pictures: int) -> list[Image.Image]:
    return [Image.new("RGB", (PROBE, PROBE))] * pictures


def _answer(output: Any) -> Answer:
    completion = output.outputs[0]
    reason = completion.finish_reason or "unknown"
    n_read = len(output.prompt_token_ids)
    return Answer(completion.text, reason, len(completion.token_ids), n_read=n_read)


def _of_tail(logprobs: Any, tail: list[int]) -> float:
    """Return the log-probability of the last tokens of a prompt, in which pictures are longer."""
    places = zip(logprobs[-len(tail) :], tail, strict=True)
    return float(sum(place[number].logprob for place, number in places))
