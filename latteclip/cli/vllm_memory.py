"""What vLLM does with a GPU's memory, by arithmetic: weights, what it computes with, and the cache.

The sizes follow vLLM's sources (0.33, `profile_run` of its second model runner): it encodes the
largest picture, then lets the model read as many tokens as a step may have, then samples for all
sequences. The largest of these is taken off, not their sum. Nothing here was measured on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latteclip.captions.engines.base import CaptionerSettings

GIB = 2**30
BYTES = {"float32": 4}  # of a number; others, and those that vLLM chooses: HALF
HALF = 2
CONTEXT, GRAPHS = 0.5 * GIB, 0.5 * GIB  # of CUDA; of the graphs that vLLM records
STEP_TOKENS = 8192, 16384  # that a step may have; on GPUs of at least LARGE
LARGE = 70 * GIB
TILES = 5  # of a picture, for a vision tower that sees squares of one size
LARGEST = 65536, 4  # patches of the picture that vLLM tries, for other towers; of a token


@dataclass(frozen=True)
class Plan:
    """How a GPU's memory is shared out, in bytes."""

    weights: float
    cache: float  # of keys and values; negative where it does not fit
    tokens: int  # that the cache holds
    requests: int  # of captioner.max_model_len tokens that fit at once


def plan(config: Mapping[str, Any], weights: int, memory: int, settings: CaptionerSettings) -> Plan:
    """Return how vLLM will share out a GPU's memory.

    Args:
        config: of the model, as transformers completes its config.json.
        weights: bytes of its files of weights.
        memory: bytes of the GPU.
        settings: of the captioner.
    """
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    size, stored = _size(settings.dtype), _size(str(config.get("dtype")))
    share = settings.tensor_parallel_size
    if settings.quantization is None and "quantization_config" not in config:
        weights = weights * size // stored
    heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    a_token = 2 * text["num_hidden_layers"] * max(1, heads // share) * width * size
    used = weights / share + CONTEXT + GRAPHS + _peak(text, vision, size, memory, settings)
    cache = memory * settings.gpu_memory_utilization - used
    tokens = max(0, int(cache // a_token))
    requests = min(settings.batch_size, tokens // settings.max_model_len)
    return Plan(weights / share, cache, tokens, requests)


def _size(dtype: str) -> int:
    return BYTES.get(dtype, HALF)


def _peak(
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    size: int,
    memory: int,
    settings: CaptionerSettings,
) -> float:
    """Return the bytes that computing takes at most: of a picture, or of a step and its samples."""
    patches, encoded = _patches(vision)
    picture = float(patches * _layer(vision, 6) * size)
    features = float(encoded * text["hidden_size"] * size)  # kept while the step runs
    step = STEP_TOKENS[memory >= LARGE] * _layer(text, 4) * size
    samples = float(settings.batch_size * text["vocab_size"] * 4 * 4)  # logits and counts, 32 bits
    return max(picture, features + step + samples)


def _layer(tower: Mapping[str, Any], copies: int) -> int:
    """Return how many numbers a token has inside a layer; 0 where the configuration is silent."""
    inside: int = copies * tower.get("hidden_size", 0) + 2 * tower.get("intermediate_size", 0)
    return inside


def _patches(vision: Mapping[str, Any]) -> tuple[int, int]:
    """Return the patches of the largest picture, and the tokens that they become."""
    side = vision.get("image_size")
    if side is None:
        patches, a_token = LARGEST
        return patches, patches // a_token
    side = side[0] if isinstance(side, list | tuple) else side
    patch = vision.get("patch_size", 14)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    patches = TILES * (side // patch) ** 2
    return patches, patches
