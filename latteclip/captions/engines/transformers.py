"""The same models through transformers, for machines on which vLLM does not run.

Letters: R requests of a batch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from latteclip.captions import processors
from latteclip.captions.answers import Answer
from latteclip.captions.engines.base import CaptionerSettings, never
from latteclip.captions.requests import Request
from latteclip.core.errors import UserError


class TransformersCaptioner:
    """Answers in batches, each padded to its longest prompt."""

    def __init__(self, settings: CaptionerSettings, threads: int = 1, pictures: int = 1) -> None:
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

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        source = iter(requests)
        while batch := list(itertools.islice(source, self._batch_size)):
            yield from zip(batch, self._answers(batch), strict=True)

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer for each of the R requests, in order."""
        import torch

        prompts = [
            processors.as_text(self._processor, len(request.pictures), request.prompt)
            for request in requests
        ]
        inputs = self._inputs(requests, prompts)
        try:
            with torch.inference_mode():
                tokens = self._model.generate(
                    **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
                )[:, inputs["input_ids"].shape[1] :]  # [R, new tokens], padded after the end
        except torch.OutOfMemoryError:
            raise UserError(
                f"The GPU's memory does not hold {len(requests)} requests at once; lower "
                "captioner.batch_size, or set captioner.dtype to bfloat16."
            ) from None
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
        """Of each row: its number of tokens up to the end token, and whether it has one."""
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        result = []
        for row in tokens.tolist():
            end = next((i for i, token in enumerate(row) if token in ends), None)
            result.append((len(row), False) if end is None else (end + 1, True))
        return result
