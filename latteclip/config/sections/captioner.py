"""The section `captioner`."""

import re
from typing import Literal

from latteclip.config.sections.base import (
    AUTO,
    AboveZero,
    Auto,
    Line,
    Pixels,
    Positive,
    Section,
    Share,
    ShareAboveZero,
    key,
)

# Captioners that read each picture as a square of OVERVIEW pixels, and as tiles.
LLAVA_NEXT = re.compile(r"llava-(v?1\.6|next)", re.IGNORECASE)
OVERVIEW = 336


class CaptionerSection(Section):
    """The multimodal model that writes the captions."""

    engine: Line = key(
        "vllm",
        "vllm; transformers: where vLLM does not run; openai: a server at OPENAI_BASE_URL; "
        "decisions: a decision model at DECISIONS_BASE_URL, which only scores classes; file: your "
        "own captions",
    )
    model: Line = key(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "a Hugging Face id, a folder, or a server's name for the model",
    )
    revision: Line | None = key(
        None, "a commit of the Hugging Face repo; null: its main branch"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "weights and arithmetic"
    )
    quantization: Line | None = key(
        None,
        "as vLLM names it, such as awq or fp8; null: as the model's files say",
    )
    tensor_parallel_size: Positive = key(1, "GPUs that hold the model together")
    max_new_tokens: Positive = key(77, "longest caption, in tokens")
    max_model_len: Positive = key(
        4096, "longest prompt, image and caption together, in tokens"
    )
    gpu_memory_utilization: ShareAboveZero = key(
        0.9, "share of the GPU's memory that vLLM takes"
    )
    batch_size: Positive = key(
        512, "requests that the engine works on at once; transformers: at most 16"
    )
    max_image_side: Pixels | None = key(
        1344,
        "larger images are scaled to this side; null: no limit",
    )
    square_side: Pixels | Auto | None = key(
        AUTO,
        "scale images to a square of this side; auto: 336 for LLaVA-1.6; null, and auto for other "
        "models: images keep their shape",
    )
    concurrency: Positive = key(32, "servers: requests at once")
    timeout: AboveZero = key(120, "servers: seconds to wait for an answer")
    max_images: Positive | None = key(
        None,
        "images that get a caption, and images for which a group gets one, at most: those with the "
        "least certain label; null: all",
    )
    images_file: Line | None = key(
        None, "engine file: your captions, by image_id; Parquet, CSV or JSON Lines"
    )
    groups_file: Line | None = key(
        None, "engine file: your group captions, by the image_id of each"
    )
    max_failed: Share = key(0.05, "share of requests that may end without an answer")

    @property
    def square(self) -> int | None:
        """The side of the square to which images are scaled, or None: they keep their shape."""
        if self.square_side == AUTO:
            return OVERVIEW if LLAVA_NEXT.search(self.model) else None
        return self.square_side
