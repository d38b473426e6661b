"""How a GPU's memory is shared out, for the two models that the configuration names."""

import dataclasses

import pytest
import yaml
from support.checkout import ROOT
from support.commands import SETTINGS

from latteclip.cli.vllm_memory import GIB, plan

CARD = int(23.6 * GIB)  # what torch sees of 24 GB
# As transformers completes their config.json, and bytes of their weights.
LLAVA = {
    "dtype": "float16",
    "text_config": {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "image_size": 336,
        "patch_size": 14,
    },
}
QWEN = {
    "dtype": "bfloat16",
    "text_config": {
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "vocab_size": 151936,
    },
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16},
}
SIZES = {"llava": (LLAVA, 15_140_000_000), "qwen": (QWEN, 17_540_000_000)}


def settings(file=None):
    """Of the captioner: the defaults, and what a file changes."""
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["captioner"]
    if file is not None:
        values |= yaml.safe_load((ROOT / "config" / file).read_text())["captioner"]
    return dataclasses.replace(SETTINGS, **values)


def test_llava_leaves_five_gib_on_24_gb():
    found = plan(*SIZES["llava"], CARD, settings())
    assert found.weights / GIB == pytest.approx(14.1, abs=0.05)
    assert found.cache / GIB == pytest.approx(5, abs=0.5)
    assert found.tokens == found.cache // (128 * 1024)  # 32 layers x 8 heads x 128 x 2 x 2 bytes
    assert found.requests == found.tokens // 4096


@pytest.mark.parametrize("name", SIZES)
def test_what_does_not_fit_holds_no_request(name):
    found = plan(*SIZES[name], 15 * GIB, settings())
    assert (found.cache < 0, found.tokens, found.requests) == (True, 0, 0)


def test_the_modern_models_leave_three_gib_on_24_gb():
    found = plan(*SIZES["qwen"], CARD, settings("modern.yaml"))
    assert 3 * GIB < found.cache < plan(*SIZES["qwen"], CARD * 2, settings("modern.yaml")).cache
    assert found.tokens == found.cache // (144 * 1024)
    assert plan(*SIZES["qwen"], CARD, settings()).cache < 2.5 * GIB
