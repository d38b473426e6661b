"""Engines that write a text about a picture, behind one small protocol.

Letters: R requests.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from latteclip.errors import UserError


@dataclass(frozen=True)
class CaptionerSettings:
    """What decides a caption, beside the picture and the prompt."""

    engine: str  # vllm or transformers
    model: str  # Hugging Face id or folder
    revision: str | None
    dtype: str
    max_new_tokens: int
    max_model_len: int
    gpu_memory_utilization: float
    batch_size: int  # requests handed to the engine at once


@dataclass(frozen=True)
class Request:
    """One picture and what is asked about it."""

    image: Image.Image
    prompt: str


@dataclass(frozen=True)
class Answer:
    """What the model wrote, as it wrote it."""

    text: str
    finish_reason: str  # "stop", or "length" where max_new_tokens cut it
    n_tokens: int


class Captioner(Protocol):
    """A model that answers requests greedily."""

    version: str

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer for each of the R requests, in order."""


def start(settings: CaptionerSettings, threads: int) -> Captioner:
    """Start the engine that the settings name.

    Raises:
        UserError: unknown engine, or a model that is not there.
    """
    if _looks_like_folder(settings.model) and not (Path(settings.model) / "config.json").is_file():
        raise UserError(
            f"Captioner model folder {settings.model} has no config.json; "
            "set captioner.model to a model folder or a Hugging Face id."
        )
    if settings.engine == "vllm":
        return VllmCaptioner(settings, threads)
    if settings.engine == "transformers":
        return TransformersCaptioner(settings, threads)
    raise UserError(f"captioner.engine {settings.engine!r} is none of vllm, transformers.")


def _looks_like_folder(model: str) -> bool:
    return Path(model).is_dir() or model.startswith((".", "/")) or model.count("/") > 1


class VllmCaptioner:
    """vLLM's offline engine."""

    def __init__(self, settings: CaptionerSettings, threads: int) -> None:
        import torch

        environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(threads)
            environment |= {
                "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other jobs use the same cores
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # nothing to overlap; starts twice as fast
                "OMP_NUM_THREADS": str(threads),
            }
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        import vllm

        self.version = f"vllm {vllm.__version__}"
        try:
            self._llm = vllm.LLM(
                model=settings.model,
                revision=settings.revision,
                dtype=settings.dtype,  # type: ignore[arg-type]
                max_model_len=settings.max_model_len,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                limit_mm_per_prompt={"image": 1},
                enforce_eager=not on_gpu,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {error}"
            ) from None
        self._sampling = vllm.SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        conversations: list[Any] = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_pil", "image_pil": request.image},
                        {"type": "text", "text": request.prompt},
                    ],
                }
            ]
            for request in requests
        ]
        completions = [
            output.outputs[0]
            for output in self._llm.chat(conversations, self._sampling, use_tqdm=False)
        ]
        return [Answer(c.text, c.finish_reason or "unknown", len(c.token_ids)) for c in completions]


class TransformersCaptioner:
    """The same models through transformers, for machines on which vLLM does not run."""

    def __init__(self, settings: CaptionerSettings, threads: int) -> None:
        import torch
        import transformers

        from latteclip import devices

        self.version = f"transformers {transformers.__version__}"
        self._device = devices.pick("auto", threads)
        self._max_new_tokens = settings.max_new_tokens
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(
                settings.model, revision=settings.revision, padding_side="left"
            )
            self._model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                settings.model,
                revision=settings.revision,
                dtype=settings.dtype
                if settings.dtype == "auto"
                else getattr(torch, settings.dtype),
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {error}"
            ) from None
        self._model.eval().to(self._device)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        import torch

        conversations = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": request.prompt}],
                }
            ]
            for request in requests
        ]
        prompts = [
            self._processor.apply_chat_template(conversation, add_generation_prompt=True)
            for conversation in conversations
        ]
        inputs = self._processor(
            images=[request.image for request in requests],
            text=prompts,
            padding=True,
            return_tensors="pt",
        ).to(self._device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
            )[:, inputs["input_ids"].shape[1] :]  # [R, new tokens], padded after the end
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        lengths = self._lengths(tokens)
        return [
            Answer(text, "stop" if ended else "length", length)
            for text, (length, ended) in zip(texts, lengths, strict=True)
        ]

    def _lengths(self, tokens: Any) -> list[tuple[int, bool]]:
        """Of each row: its number of tokens up to the end token, and whether it has one."""
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        result = []
        for row in tokens.tolist():
            end = next((i for i, token in enumerate(row) if token in ends), None)
            result.append((len(row), False) if end is None else (end + 1, True))
        return result
