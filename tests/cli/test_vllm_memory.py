"""How a GPU's memory is shared out, for the model that the configuration names."""

import dataclasses

import pytest
import yaml
from support.checkout import ROOT
from support.commands import SETTINGS

from latteclip.cli.vllm_memory import GIB, plan

CARD = int(23.6 * GIB)  # what torch sees of 24 GB
# As transformers completes its config.json.
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
WEIGHTS = 15_140_000_000  # bytes


@pytest.fixture
def settings():
    """Of the captioner by default."""
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["captioner"]
    return dataclasses.replace(SETTINGS, **values)


def test_llava_leaves_five_gib_on_24_gb(settings):
    found = plan(LLAVA, WEIGHTS, CARD, settings)
    assert found.weights / GIB == pytest.approx(14.1, abs=0.05)
    assert found.cache / GIB == pytest.approx(5, abs=0.5)
    assert found.tokens == found.cache // (128 * 1024)  # 32 layers x 8 heads x 128 x 2 x 2 bytes
    assert found.requests == found.tokens // 4096


def test_a_model_that_does_not_fit_has_no_room_for_a_request(settings):
    found = plan(LLAVA, WEIGHTS, 15 * GIB, settings)
    assert (found.cache < 0, found.tokens, found.requests) == (True, 0, 0)
