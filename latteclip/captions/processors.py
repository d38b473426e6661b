"""The processor of a model that this process loads: how requests become tokens."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from latteclip.captions.engines.base import CaptionerSettings, TooLongError
from latteclip.captions.request import messages
from latteclip.core.errors import UserError

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


class TokenCounter:
    """Counts the tokens of requests without the model (`engines.base.Count`)."""

    def __init__(self, settings: CaptionerSettings, max_new_tokens: int) -> None:
        self._processor = load(settings)
        self._max_new_tokens, self._max_model_len = max_new_tokens, settings.max_model_len

    def __call__(self, prompt: str, pictures: Sequence[Image.Image]) -> int:
        images = {"images": [list(pictures)]} if pictures else {}
        text = as_text(self._processor, len(pictures), prompt)
        n = len(self._processor(text=[text], **images)["input_ids"][0])
        if pictures and n + self._max_new_tokens > self._max_model_len:
            raise TooLongError(
                f"A request has {n:,} tokens (pictures: {len(pictures)}), and those of the answer "
                f"(captioner.max_new_tokens, {self._max_new_tokens}) do not fit beside them into "
                f"captioner.max_model_len ({self._max_model_len:,})",
                f"raise that to {n + self._max_new_tokens:,} where the model reads so many",
            )
        return n
