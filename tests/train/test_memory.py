"""How many images and texts are encoded at once; an encoder that refuses stands in for a GPU."""

import pytest
import torch
from support.backbones import CPU, TEXTS, assert_same_gradients, gradients

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core.errors import UserError
from latteclip.train import memory, prepare
from latteclip.train.settings import Compute


def limit_memory(monkeypatch, rows):
    """Let the encoder hold so many images or texts at once."""
    encoded = encode._encode

    def bounded(clip, function, batch):
        if (clip.micro_batch or len(batch)) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encoded(clip, function, batch)

    monkeypatch.setattr(encode, "_encode", bounded)


@pytest.mark.parametrize(
    ("rows", "chosen"), [(48, None), (47, 32), (32, 32), (31, 16), (3, 2), (1, 1)]
)
def test_the_largest_power_of_two_that_fits_is_chosen(rows, chosen, backbones, monkeypatch):
    clip = clips.load(backbones["vit"], None, CPU)
    limit_memory(monkeypatch, rows)
    assert memory.micro_batch(clip, clip.tokenizer(TEXTS), 48) == chosen


def test_trying_changes_nothing(backbones):
    clip = clips.load(backbones["hf_mean"], None, CPU)  # which has dropout
    before = gradients(clip)
    saved = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    state = torch.get_rng_state()
    prepare.training_mode(clip.model, "frozen")
    memory.micro_batch(clip, clip.tokenizer(TEXTS), 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(saved[name], each) for name, each in clip.model.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    clip.model.eval()
    assert_same_gradients(gradients(clip), before, rtol=0)


def test_no_room_for_one_image_is_a_sentence(backbones, monkeypatch):
    clip = clips.load(backbones["vit"], None, CPU)
    limit_memory(monkeypatch, 0)
    with pytest.raises(UserError, match=r"compute\.gradient_checkpointing"):
        memory.micro_batch(clip, clip.tokenizer(TEXTS), 48)


def test_a_cpu_takes_the_whole_batch(backbones):
    clip = clips.load(backbones["vit"], None, CPU)
    prepare.prepare_training(clip, Compute(), clip.tokenizer(TEXTS), 6)
    assert Compute().micro_batch == "auto"
    assert clip.micro_batch is None


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_a_gpu_takes_what_fits(batch_norm, backbones, monkeypatch):
    clip = clips.load(backbones["resnet"], None, CPU)
    tokens = clip.tokenizer(TEXTS)
    monkeypatch.setattr(memory, "on_gpu", lambda clip: True)
    limit_memory(monkeypatch, 3)
    if batch_norm == "train":
        with pytest.raises(UserError, match=r"finetune\.batch_size to 2"):
            prepare.prepare_training(clip, Compute(), tokens, 48, batch_norm)
    else:
        prepare.prepare_training(clip, Compute(), tokens, 48, batch_norm)
        assert clip.micro_batch == 2
        assert not clip.model.training


@pytest.mark.parametrize(
    ("at_once", "divisible", "advice"),
    [
        (64, True, r"compute\.micro_batch to 32\."),
        (64, False, r"finetune\.batch_size to 32\."),
        (1, True, r"compute\.gradient_checkpointing"),
    ],
)
def test_running_out_of_memory_is_one_sentence(at_once, divisible, advice):
    with pytest.raises(UserError, match=advice), memory.explained(at_once, divisible=divisible):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
