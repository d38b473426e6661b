"""Captions and class scores through transformers, for machines on which vLLM does not run."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from latteclip.captions.engine import Response, at_once, scored
from latteclip.captions.engines import processors
from latteclip.captions.engines.processors import SplitTokens, Tokens
from latteclip.captions.questions import Choices, Request
from latteclip.config.keys import CaptionerSection
from latteclip.core import devices
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)
# Tokens of a batch: of LLaVA-1.6 at captioner.max_model_len 4,096, they are 16 requests. A CPU gets
# fewer: where its memory is short, the system kills the process, and no batch can be halved.
TOKENS = 2**16
TOKENS_OF_CPU = 2**14


class TransformersEngine:
    """Answers in batches, each padded to its longest prompt."""

    def __init__(self, settings: CaptionerSection, threads: int, *_: object) -> None:
        if settings.quantization is not None:
            raise UserError(
                "captioner.quantization is vLLM's; with engine transformers set it to null."
            )
        self.version = f"transformers {transformers.__version__}"
        self._device = devices.pick("auto", threads)
        tokens = TOKENS_OF_CPU if self._device.type == "cpu" else TOKENS
        self._at_once = at_once(settings, max(1, tokens // settings.max_model_len))
        self._max_new_tokens = settings.max_new_tokens
        self._processor = processors.load(settings)
        try:
            self._model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                settings.model,
                revision=settings.revision,
                dtype=settings.dtype,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"Captioner model {settings.model!r} cannot be loaded: {error}"
            ) from None
        self._model.eval().to(self._device)
        self._tokens = Tokens(self._processor)

    def answer(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Response]]:
        source = iter(requests)
        waiting = list[Request]()
        while waiting := waiting or list(itertools.islice(source, self._at_once)):
            batch = waiting[: self._at_once]
            try:
                answers = self._answers(batch)
            except torch.OutOfMemoryError:  # which holds memory until the handler is left
                answers = []
            if not answers:
                self._halve(len(batch))
            yield from zip(batch, answers, strict=False)
            waiting = waiting[len(answers) :]

    def _halve(self, tried: int) -> None:
        """Take half as many requests at once, or raise UserError after a single one."""
        if tried == 1:
            raise UserError(
                "The GPU's memory does not hold a single request; end what else uses the GPU, set "
                "captioner.dtype to bfloat16, or lower captioner.max_image_side."
            )
        self._at_once = tried // 2
        log.warning(
            "%d requests do not fit into the GPU's memory: asking fewer at once.", tried
        )

    @torch.inference_mode()
    def _answers(self, batch: Sequence[Request]) -> list[Response]:
        choices = batch[0].choices
        if choices is None:
            return self._captions(batch)
        score = self._letters if choices.by_letters else self._likelihoods
        return [score(request, request.choices or choices) for request in batch]

    def _captions(self, batch: Sequence[Request]) -> list[Response]:
        prompts = [self._tokens.prompts(request)[0] for request in batch]
        inputs = self._inputs(batch, prompts)
        whole = self._model.generate(
            **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
        )
        written = whole[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        ends = torch.tensor(self._model.generation_config.eos_token_id, device=self._device)
        is_end = torch.isin(written, ends)
        # The first end counts, and padding after it does not.
        n_written = (is_end.cumsum(1) - is_end.long() == 0).sum(1)
        n_read = inputs["attention_mask"].sum(1)
        rows = zip(texts, is_end.any(1), n_written.tolist(), n_read.tolist(), strict=True)
        return [
            Response(text, "stop" if has_end else "length", written, read)
            for text, has_end, written, read in rows
        ]

    def _inputs(self, batch: Sequence[Request], prompts: Sequence[str]) -> Any:
        """Return pictures and prompts as the model takes them, padded on the left."""
        inputs = self._processor(
            images=[list(request.pictures) for request in batch],
            text=list(prompts),
            padding=True,
            return_tensors="pt",
            add_special_tokens=processors.adds_special_tokens(
                self._processor.tokenizer, prompts[0]
            ),
        )
        return inputs.to(self._device, self._model.dtype)

    def _letters(self, request: Request, choices: Choices) -> Response:
        ids_of = self._tokens.ids_of_letters(choices.texts)
        rows = []
        first = []
        n_read = 0
        for prompt in self._tokens.prompts(request):
            inputs = self._inputs([request], [prompt])
            n_read += inputs["input_ids"].numel()
            logits = self._model(**inputs, logits_to_keep=1).logits
            row = logits[0, -1].float().log_softmax(0)
            rows.append([row[ids].logsumexp(dim=0).item() for ids in ids_of])
            first.append(self._tokens.text(int(row.argmax())))
        return scored(choices, rows, first, len(rows), n_read)

    def _likelihoods(self, request: Request, choices: Choices) -> Response:
        [prompt] = self._tokens.prompts(request)
        split = self._tokens.split(prompt, choices.texts)
        inputs = self._inputs([request], [prompt])
        logits = self._logits(inputs, split)
        values = []
        for row, tail in zip(logits, split.tails, strict=True):
            logprobs = row[: len(tail)].float().log_softmax(1)[range(len(tail)), tail]
            values.append(logprobs.double().sum().item())
        return split.answer(choices, values, inputs["input_ids"].numel())

    def _logits(self, inputs: Any, split: SplitTokens) -> torch.Tensor:
        """Return logits [K, T, V] of the T tokens of the longest of K tails, by V words.

        The model reads what all tails have in common once. Padding follows the tails, so that no
        token of theirs sees it.
        """
        shape = inputs["input_ids"].shape
        shared = shape[1] - len(split.prompt) + split.start
        begin = {k: v[:, :shared] if v.shape == shape else v for k, v in inputs.items()}
        prefix = self._model(**begin, use_cache=True, logits_to_keep=1)
        # The logits of each tail's first token.
        logits: torch.Tensor = prefix.logits.expand(len(split.tails), -1, -1)
        tails = [torch.tensor(tail) for tail in split.tails]
        tokens = pad_sequence(tails, batch_first=True).to(self._device)
        if tokens.shape[1] == 1:
            return logits
        prefix.past_key_values.batch_repeat_interleave(len(tokens))
        rest = self._model(
            input_ids=tokens[:, :-1], past_key_values=prefix.past_key_values
        ).logits
        return torch.cat([logits, rest], dim=1)


make = TransformersEngine
