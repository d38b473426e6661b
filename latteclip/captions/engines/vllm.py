"""vLLM's offline engine.

The prompts of a request share the picture and all tokens that they begin with (prefix caching).
Likelihoods are those of next tokens, which both model runners of vLLM give beside a cached prefix.
For log-probabilities of a prompt vLLM reads no cached prefix unless `skip_reading_prefix_cache` is
False. Then it returns none where the cached blocks reach beyond `prompt_logprob_start`, as those of
classes that begin alike do, and it takes `prompt_logprob_token_ids` by its runner V2 alone.
"""

import functools
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # does not touch CUDA by itself

from latteclip.captions.engine import Response, at_once, failed, scored
from latteclip.captions.engines.transformers import (
    SplitTokens,
    Tokens,
    load_processor,
)
from latteclip.captions.questions import Request
from latteclip.config.keys import CaptionerSection
from latteclip.core import devices, files
from latteclip.core.errors import GIB, UserError
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)
AT_ONCE = 512  # requests, at most
# Requests for each GiB of a GPU: as many as a model of 7 billion weights finds room for, so that no
# memory goes to CUDA graphs of larger batches.
AT_ONCE_PER_GIB = 4
# Prompts inside the engine for each one that it works on: rendered ahead.
QUEUED = 2
MAX_WAITING = 2 * GIB  # bytes of the pictures inside the engine
# In RGB, and as a model reads it: two frames or an overview and tiles.
BYTES_OF_PIXEL = 20
DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # which the job's log gets
    # FlashInfer compiles its sampler by nvcc at the first start, also where there is none
    # (vllm-project/vllm#49497). Greedy requests never use it.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ENGINE_READY_TIMEOUT_S": "3600",  # several shards may read one slow disk
}
DEFAULTS_OF_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other jobs use the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # starts twice as fast
}
CACHE = "VLLM_CACHE_ROOT"
SHORTER = (
    "set captioner.max_model_len to what the model can read, and large enough for picture, prompt "
    "and answer, or lower captioner.max_image_side"
)
# What to do about an engine that does not run.
REMEDY = (
    "The lines of vLLM above, or in the job's log, say why. Where memory is short, lower "
    "captioner.gpu_memory_utilization to the share that is free, captioner.max_model_len or "
    "captioner.batch_size, set captioner.quantization, or spread the model over GPUs with "
    "captioner.tensor_parallel_size. captioner.engine transformers does without vLLM"
)


def _is_for_cpu() -> bool:
    """Return whether vLLM computes on the CPU here: it asks the driver and does not touch CUDA.

    UserError: it is built for GPUs, and there is none that this process may use.
    """
    # Workers are not forked, in case a library has touched CUDA in this process nevertheless.
    os.environ |= {
        **DEFAULTS,
        **os.environ,
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if torch.version.cuda is None:
        devices.refuse_unusable(torch.__version__, None)
    from vllm.platforms import current_platform

    is_cpu = bool(current_platform.is_cpu())
    if not is_cpu and not torch.cuda.device_count():
        visible = os.environ.get(devices.VISIBLE)
        raise UserError(
            f"vLLM is built for GPUs here, and this process may use none ({devices.VISIBLE}="
            f"{visible!r}); set captioner.engine to transformers, or run make install KIND=cpu."
        )
    return is_cpu


def _separate_cache(model: str) -> None:
    """Give the engines of each GPU and model a cache of their own, unless the user names one.

    vLLM writes the index of its compiled code in place, where another engine may read half of it.
    SLURM gives each job a GPU of the number 0, hence the UUIDs.
    """
    if uuids := [*devices.visible().values()]:
        root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        # Eight UUIDs are longer than the name of a folder can be.
        name = f"{uuids[0]}-{files.digest(model, *uuids)[:8]}".replace("/", "-")
        os.environ.setdefault(CACHE, str(root / "vllm-latteclip" / name))


def _fitting(n_gpus: int) -> int:
    """Return how many requests this machine's GPUs have memory for, AT_ONCE without a GPU."""
    sizes = [
        int(size) for [size] in devices.query("memory.total") if size.isdigit()
    ]  # MiB
    if not sizes:
        return AT_ONCE
    return max(1, min(AT_ONCE, AT_ONCE_PER_GIB * n_gpus * min(sizes) // 1024))


@dataclass
class _Asked:
    """A request inside vLLM: one prompt, or several of which the scores are read."""

    request: Request
    split: SplitTokens | None  # the tokens of prompt and choices, for likelihoods
    size: int  # bytes of its pictures inside vLLM
    # By the names of the prompts inside vLLM; None: not finished
    outputs: dict[str, Any]


class VllmEngine:
    """Keeps vLLM's scheduler full: each finished prompt makes room for the next one."""

    def __init__(
        self,
        settings: CaptionerSection,
        threads: int,
        scoring: bool = False,
    ) -> None:
        devices.claim(settings.tensor_parallel_size)
        _separate_cache(settings.model)
        on_cpu = _is_for_cpu()
        # Threads that make pictures the model's input: vLLM has one where this is not set.
        n_threads = threads if on_cpu else min(threads, 4)
        os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))
        if on_cpu:
            torch.set_num_threads(threads)
            os.environ |= {**DEFAULTS_OF_CPU, **os.environ}
        elif sentence := devices.missing_compiler():
            raise UserError(sentence)
        import vllm.exceptions

        self._tokens = Tokens(load_processor(settings))
        n_at_once = at_once(settings, _fitting(settings.tensor_parallel_size))
        log.info(
            "vLLM loads %s, for which it waits %s s (VLLM_ENGINE_READY_TIMEOUT_S).",
            settings.model,
            os.environ["VLLM_ENGINE_READY_TIMEOUT_S"],
        )
        try:
            self._llm = vllm.LLM(
                model=settings.model,
                revision=settings.revision,
                dtype=settings.dtype,
                quantization=settings.quantization,  # type: ignore[arg-type]
                tensor_parallel_size=settings.tensor_parallel_size,
                max_model_len=settings.max_model_len,
                # CUDA graphs are made up to twice this size.
                max_num_seqs=n_at_once,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                # vLLM reserves memory for the most of each kind that it allows.
                limit_mm_per_prompt={"image": 1, "video": 0, "audio": 0},
                # The files of transformers, which `download_model` fetches. A repo may also
                # have Mistral's form of them, which vLLM would prefer.
                config_format="hf",
                tokenizer_mode="hf",
                load_format="safetensors",
                # Scores send a picture once for each choice. Captions send it once, and to
                # hash it would be in vain.
                mm_processor_cache_gb=1 if scoring else 0,
                enable_prefix_caching=scoring,
                enforce_eager=on_cpu,
                trust_remote_code=False,
            )
        # Raised by vLLM, transformers, pydantic or the driver's library.
        except Exception as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {one_line(error)}. {REMEDY}."
            ) from None
        self._refusals = (ValueError, vllm.exceptions.VLLMClientError)
        self._ends = (RuntimeError, MemoryError, vllm.exceptions.VLLMServerError)
        self._sampling_of = functools.partial(vllm.SamplingParams, temperature=0.0)
        self._sampling = self._sampling_of(max_tokens=settings.max_new_tokens)
        self._max_queued = QUEUED * n_at_once

    def answer(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Response]]:
        source = iter(requests)
        waiting: dict[str, _Asked] = {}
        size = 0
        while True:
            while len(waiting) < self._max_queued and size < MAX_WAITING:
                if (request := next(source, None)) is None:
                    break
                try:
                    asked = self._enqueued(request)
                # Too long, or a picture that it cannot take.
                except self._refusals as error:
                    yield request, failed(f"{one_line(error, 120)}; {SHORTER}")
                    continue
                waiting |= dict.fromkeys(asked.outputs, asked)
                size += asked.size
            if not waiting:
                return
            for output in self._finished():
                asked = waiting.pop(output.request_id)
                asked.outputs[output.request_id] = output
                if None not in asked.outputs.values():
                    size -= asked.size
                    yield asked.request, self._answer(asked)

    def _enqueued(self, request: Request) -> _Asked:
        """Give a request to vLLM, whole or not at all."""
        choices = request.choices
        split = None
        data = {"multi_modal_data": {"image": [*request.pictures]}}
        prompts = self._tokens.prompts(request)
        texts = [self._tokens.ids(prompt) for prompt in prompts]
        sampling: Any = self._sampling
        if choices and choices.by_letters:
            ids_of = self._tokens.ids_of_letters(choices.texts)
            sampling = self._sampling_among(itertools.chain(*ids_of))
        elif choices:
            split = self._tokens.split(prompts[0], choices.texts)
            nexts = next_tokens(split.tails)
            shared = split.prompt[: split.start]
            texts = [[*shared, *beginning] for beginning in nexts]
            sampling = [self._sampling_among(each) for each in nexts.values()]
        asked: Any = [{"prompt_token_ids": ids, **data} for ids in texts]
        names = self._llm.enqueue(asked, sampling, use_tqdm=False)
        # vLLM appends characters.
        outputs = dict.fromkeys(name.partition("-")[0] for name in names)
        pixels = sum(math.prod(picture.size) for picture in request.pictures)
        return _Asked(request, split, BYTES_OF_PIXEL * pixels, outputs)

    def _sampling_among(self, tokens: Iterable[int]) -> Any:
        """Return parameters for the log-probabilities of tokens as the next one."""
        # Else each token of the prompt becomes text, in the thread that steps the engine.
        return self._sampling_of(
            max_tokens=1, detokenize=False, logprob_token_ids=[*tokens]
        )

    def _finished(self) -> list[Any]:
        try:
            outputs = self._llm.llm_engine.step()
        except self._ends as error:
            raise UserError(
                f"vLLM stopped: {one_line(error)}. {REMEDY}."
            ) from None
        return [output for output in outputs if output.finished]

    def _answer(self, asked: _Asked) -> Response:
        outputs = asked.outputs.values()
        completions = [output.outputs[0] for output in outputs]
        lengths = [len(output.prompt_token_ids) for output in outputs]
        choices = asked.request.choices
        if choices is None:
            [each] = completions
            return Response(
                each.text, each.finish_reason, len(each.token_ids), lengths[0]
            )
        if asked.split:
            values = of_tails(asked.split.tails, completions)
            # All begin with the prompt, which is read once.
            return asked.split.answer(choices, values, max(lengths))
        rows = []
        first = []
        for completion in completions:
            [logprobs] = completion.logprobs  # computed before any masking
            named = (
                [logprobs[number].logprob for number in ids]
                for ids in self._tokens.ids_of_letters(choices.texts)
            )
            rows.append([float(np.logaddexp.reduce(each)) for each in named])
            first.append(self._tokens.text(completion.token_ids[0]))
        return scored(choices, rows, first, len(rows), sum(lengths))


make = VllmEngine


def next_tokens(tails: Sequence[Sequence[int]]) -> dict[tuple[int, ...], set[int]]:
    """Return the tokens by which tails go on, by the beginning before them."""
    nexts: dict[tuple[int, ...], set[int]] = {}
    for tail in tails:
        for length, token in enumerate(tail):
            nexts.setdefault(tuple(tail[:length]), set()).add(token)
    return nexts


def of_tails(
    tails: Sequence[Sequence[int]], completions: Sequence[Any]
) -> list[float]:
    """Return the log-probabilities of K tails by the completions of their `next_tokens`."""
    pairs = zip(next_tokens(tails), completions, strict=True)
    after = {beginning: completion.logprobs[0] for beginning, completion in pairs}
    sums = []
    for tail in tails:
        values = [
            after[tuple(tail[:n])][token].logprob for n, token in enumerate(tail)
        ]
        sums.append(float(sum(values)))
    return sums
