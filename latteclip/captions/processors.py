"""The processor of a model that this process loads: how requests become tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from latteclip.captions.engines.base import CaptionerSettings, TooLongError
from latteclip.captions.requests import messages
from latteclip.config import hub_names
from latteclip.core.errors import UserError

SPECIAL_TOKENS = "added unless the prompt begins with them"  # the rule of all engines
# Parts of a tokenizer.json, and settings of a tokenizer_config.json, that add special tokens.
ADDING = ("SpecialToken", "BertProcessing", "RobertaProcessing")
ADDS = ("add_bos_token", "add_eos_token")
NEEDS = {"image_processor": "takes no pictures", "chat_template": "has no chat template"}


def load(settings: CaptionerSettings) -> Any:
    """The model's processor, which pads on the left.

    Raises:
        UserError: there is none, or it takes no pictures or no conversations.
    """
    import transformers

    try:
        processor = transformers.AutoProcessor.from_pretrained(
            settings.model,
            revision=settings.revision,
            padding_side="left",
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"Captioner model {settings.model!r} cannot be loaded: {error}") from None
    for part, lack in NEEDS.items():
        if getattr(processor, part, None) is None:
            raise UserError(
                f"Captioner model {settings.model!r} {lack}; set captioner.model to a multimodal "
                "model that answers questions."
            )
    return processor


def as_text(processor: Any, n_pictures: int, prompt: str) -> str:
    """A request in the words of the model's chat template, up to where the answer begins."""
    conversation = messages([{"type": "image"}] * n_pictures, prompt)
    text: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    return text


def adds_special_tokens(tokenizer: Any, prompt: str) -> bool:
    """Return whether the tokenizer adds its special tokens to a prompt in its template's words.

    The rule of transformers: it does, unless the template has begun the prompt with them.
    """
    first = tokenizer.bos_token
    return first is None or not prompt.startswith(first)


def special_tokens(model: str, revision: str | None) -> str | None:
    """Return the rule for special tokens as a part of what is asked.

    None where the model's tokenizer has none to add, as Qwen's: its answers are the same under any
    rule. Read from its files, as transformers takes seconds to import. Where these do not tell, the
    rule counts.
    """
    try:
        tokenizer, settings = (
            json.loads(_file(model, revision, name).read_bytes())
            for name in ("tokenizer.json", "tokenizer_config.json")
        )
        adding = json.dumps(tokenizer["post_processor"])
        adds = any(part in adding for part in ADDING) or any(settings.get(name) for name in ADDS)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        adds = True
    return SPECIAL_TOKENS if adds else None


def _file(model: str, revision: str | None, name: str) -> Path:
    """Return the path of a file of a model, which is fetched where the hub's cache lacks it."""
    if hub_names.is_folder(model):
        return Path(model, name)
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(model, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    return Path(huggingface_hub.hf_hub_download(model, name, revision=revision))


class TokenCounter:
    """Counts the tokens of requests without the model (`engines.base.Count`)."""

    def __init__(self, settings: CaptionerSettings, max_new_tokens: int) -> None:
        self._processor = load(settings)
        self._max_new_tokens, self._max_model_len = max_new_tokens, settings.max_model_len

    def __call__(self, prompt: str, pictures: Sequence[Image.Image]) -> int:
        images = {"images": [list(pictures)]} if pictures else {}
        text = as_text(self._processor, len(pictures), prompt)
        special = adds_special_tokens(self._processor.tokenizer, text)
        inputs = self._processor(text=[text], add_special_tokens=special, **images)
        n = len(inputs["input_ids"][0])
        if pictures and n + self._max_new_tokens > self._max_model_len:
            raise TooLongError(
                f"A request has {n:,} tokens (pictures: {len(pictures)}), and those of the answer "
                f"(captioner.max_new_tokens, {self._max_new_tokens}) do not fit beside them into "
                f"captioner.max_model_len ({self._max_model_len:,})",
                f"raise that to {n + self._max_new_tokens:,} where the model reads so many",
            )
        return n
