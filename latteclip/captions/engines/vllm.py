"""vLLM's offline engine."""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from PIL import Image

from latteclip.captions import processors
from latteclip.captions.answers import Answer
from latteclip.captions.engines.base import CaptionerSettings, never
from latteclip.captions.requests import Request, messages
from latteclip.captions.vllm_output import EngineOutput, explained
from latteclip.core import gpus
from latteclip.core.errors import UserError

T = TypeVar("T")
log = logging.getLogger(__name__)
PROBE = 64  # side of a picture to try, pixels
PROMPTS = 4096  # whose tokens are kept
ROOM = 2  # requests inside the engine for each one that it works on: rendered ahead


def _is_for_cpu() -> bool:
    """Whether vLLM computes on the CPU here, by its own word, which it has from the driver.

    Nothing in this process may touch CUDA before vLLM's workers start. They are spawned, not
    forked, for a library that has touched it all the same.

    Raises:
        UserError: torch cannot use the GPUs that are there.
    """
    import torch  # which touches nothing by itself

    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    _set_unless_set(
        {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            # FlashInfer compiles its sampler by nvcc at the first start, also where there is none
            # (vllm-project/vllm#49497). Greedy requests never use it.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }
    )
    gpus.refuse_unusable(torch.__version__, torch.version.cuda)
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _set_unless_set(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


class VllmCaptioner:
    """Keeps vLLM's scheduler full: each finished request makes room for the next one."""

    keeps_prefixes = False  # of requests whose beginning others have too
    cache_gib = 0  # of processed pictures, each of which comes once: hashing them would be in vain

    def __init__(self, settings: CaptionerSettings, threads: int, pictures: int) -> None:
        gpus.claim(settings.tensor_parallel_size)
        on_cpu = _is_for_cpu()
        if on_cpu:
            import torch

            torch.set_num_threads(threads)
            _set_unless_set(
                {
                    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other jobs use the same cores
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # starts twice as fast
                    "OMP_NUM_THREADS": str(threads),
                }
            )
        else:
            gpus.refuse_missing_compiler()
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
                    # have Mistral's own form of them, which vLLM would prefer.
                    config_format="hf",
                    tokenizer_mode="hf",
                    load_format="safetensors",
                    mm_processor_cache_gb=self.cache_gib,
                    enable_prefix_caching=self.keeps_prefixes,
                    enforce_eager=on_cpu,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {self._reason(error)}"
            ) from None
        self._refusals = (ValueError, vllm.exceptions.VLLMClientError)
        self._ends = (RuntimeError, MemoryError, vllm.exceptions.VLLMServerError)
        self._sampling = vllm.SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)
        self._room = ROOM * settings.batch_size
        self._rendered = functools.lru_cache(PROMPTS)(self._render)
        self._try_out(settings.model, pictures)

    def _try_out(self, model: str, pictures: int) -> None:
        """Ask about black pictures: a model that cannot be asked says so before work begins."""
        [(_, answer)] = VllmCaptioner.answer(self, [Request(0, blacks(pictures), "?")])
        if answer.error is not None:
            raise UserError(
                f"Captioner model {model!r} cannot be asked (pictures: {pictures}): {answer.error}"
            )

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        for request, output in self._run(requests, self._enqueue, would_wait):
            yield request, output if isinstance(output, Answer) else _answer(output)

    def _run(
        self, requests: Iterable[T], enqueue: Callable[[T], str], would_wait: Callable[[], bool]
    ) -> Iterator[tuple[T, Any]]:
        """Each request with vLLM's output, or with an answer that says why there is none.

        Args:
            requests: what is asked.
            enqueue: hands one over; returns the id that its output will bear.
            would_wait: see `Captioner.answer`.
        """
        engine, source = self._llm.llm_engine, iter(requests)
        waiting: dict[str, T] = {}
        more = True
        while more or waiting:
            while more and len(waiting) < self._room and not (waiting and would_wait()):
                request = next(source, None)
                if request is None:
                    more = False
                    break
                try:
                    waiting[enqueue(request)] = request
                except self._refusals as error:  # too long, or a picture that it cannot take
                    yield request, Answer("", "error", None, explained(error))
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
        """Hand a request over; returns the id that its output will bear."""
        prompt: Any = self._rendered(request.prompt, len(request.pictures))
        shown = {kind: list(request.pictures) for kind in prompt["multi_modal_data"]}
        prompt = {**prompt, "multi_modal_data": shown}
        [internal] = self._llm.enqueue([prompt], self._sampling, use_tqdm=False)
        return external_id(internal)

    def _render(self, prompt: str, pictures: int) -> Any:
        """Return the tokens of a request with black pictures, as the model's own processor does.

        `LLM.enqueue_chat` would render each request again, and never adds special tokens.
        """
        from vllm.renderers import ChatParams

        renderer = self._llm.renderer
        asks = {"add_generation_prompt": True, "tokenize": False}
        black = [{"type": "image_pil", "image_pil": each} for each in blacks(pictures)]
        conversation: Any = messages(black, prompt)
        text: Any
        _, text = renderer.render_messages(conversation, ChatParams(chat_template_kwargs=asks))
        special = processors.adds_special_tokens(renderer.get_tokenizer(), text["prompt"])
        params = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=special)
        [tokens] = renderer.tokenize_prompts([text], params)
        return tokens


def blacks(pictures: int) -> list[Image.Image]:
    """So many black pictures."""
    return [Image.new("RGB", (PROBE, PROBE))] * pictures


def external_id(internal: str) -> str:
    """The id of an output: vLLM appends random characters to its number."""
    return internal.partition("-")[0]


def _answer(output: Any) -> Answer:
    completion = output.outputs[0]
    reason = completion.finish_reason or "unknown"
    n_read = len(output.prompt_token_ids)
    return Answer(completion.text, reason, len(completion.token_ids), n_read=n_read)
