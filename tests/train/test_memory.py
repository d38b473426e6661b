"""How many images and texts fit: measured on every kind of tower, as a GPU's counts would be."""

import pytest
import torch
from support.backbones import CPU, TEXTS, assert_same_gradients, gradients, pictures
from support.live_bytes import LiveBytes

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core.errors import UserError
from latteclip.train import memory, prepare
from latteclip.train.memory import GIB, Need, StepNeeds
from latteclip.train.objectives.losses import contrastive
from latteclip.train.settings import Compute

# Bytes, in units that are easily added up: 10 per image, 2 per text, 100 for the weights.
NEEDS = StepNeeds(Need(10), Need(2), Need(4), 100)


def measured(clip):
    prepare.training_mode(clip.model, "frozen")
    with LiveBytes() as live:
        return memory.needs(clip, clip.tokenizer(TEXTS), live)


def step(clip, n):
    """The most bytes of a step of n images and as many texts beyond what is there before it."""
    tokens = clip.tokenizer((TEXTS * n)[:n])
    images = pictures(clip, n)
    with LiveBytes([images, tokens]) as live:
        texts = encode.encode_texts(clip, tokens)
        contrastive(encode.encode_images(clip, images), texts, torch.tensor(10.0)).backward()
    clip.model.zero_grad()
    return live.peak()


@pytest.mark.parametrize("kind", ["vit", "siglip", "convnext", "resnet", "hf_mean"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_about_what_was_foretold(kind, checkpointing, backbones):
    clip = clips.load(backbones[kind], None, CPU)
    if checkpointing and kind != "resnet":
        prepare.prepare_training(
            clip, Compute(gradient_checkpointing=True), clip.tokenizer(TEXTS), 6
        )
    needed = measured(clip)
    weights = sum(p.nbytes for p in clip.model.parameters() if p.requires_grad)
    assert needed.weights == 3 * weights
    foretold = needed.whole(48, 48) - memory.MOMENTS * weights
    assert foretold / 2 < step(clip, 48) < 1.1 * foretold


@pytest.mark.parametrize("kind", ["vit", "siglip", "hf_mean"])
def test_what_is_chosen_fits(kind, backbones):
    clip = clips.load(backbones[kind], None, CPU)
    needed = measured(clip)
    free = (needed.parts(8) + needed.whole(48, 48)) / 2 / (1 - memory.SPARED)
    chosen = memory.choose(needed, free, 48, len(TEXTS) * 100, divisible=True)
    assert 8 <= chosen < 48
    moments = memory.MOMENTS * sum(p.nbytes for p in clip.model.parameters())
    clip.micro_batch = chosen
    assert step(clip, 48) + moments < free


def test_measuring_changes_nothing(backbones):
    clip = clips.load(backbones["hf_mean"], None, CPU)  # which has dropout
    before = gradients(clip)
    statistics = clip.model.state_dict()
    kept = {name: tensor.clone() for name, tensor in statistics.items()}
    state = torch.get_rng_state()
    measured(clip)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(kept[name], tensor) for name, tensor in statistics.items())
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    clip.model.eval()
    assert_same_gradients(gradients(clip), before, rtol=0)


@pytest.mark.parametrize(
    ("room", "texts", "chosen"),
    [
        (100 + 48 * 10 + 96 * 2, 96, None),
        (100 + 48 * 10 + 96 * 2 - 1, 96, 32),
        (100 + 48 * 10 + 4 * 48 * 2, 10**6, None),  # no more than four texts per image
        (100 + 32 * 10, 96, 32),
        (100 + 32 * 10 - 1, 96, 16),
        (100 + 10, 96, 1),
    ],
)
def test_the_largest_power_of_two_that_fits_is_chosen(room, texts, chosen):
    free = room / (1 - memory.SPARED) + 1e-6
    assert memory.choose(NEEDS, free, 48, texts, divisible=True) == chosen


def test_texts_longer_than_images_decide():
    needed = StepNeeds(Need(1), Need(2), Need(20), 0)
    assert memory.choose(needed, 100, 64, 100, divisible=True) == 4


def test_no_room_for_one_image_is_a_sentence():
    with pytest.raises(UserError, match=r"Not even one image .* 0\.0 GiB are free; set compute"):
        memory.choose(NEEDS, 109, 48, 96, divisible=True)


def test_batches_that_must_stay_whole_are_told_the_size_that_fits():
    needed = StepNeeds(Need(GIB), Need(0), Need(0), 0)
    wanted = r"batch of 48 needs about 48\.0 GiB .* 20\.0 GiB are free.*batch_size to 16.* frozen"
    with pytest.raises(UserError, match=wanted):
        memory.choose(needed, 20 * GIB, 48, 0, divisible=False)


def test_a_cpu_takes_the_whole_batch(backbones):
    clip = clips.load(backbones["vit"], None, CPU)
    prepare.prepare_training(clip, Compute(), clip.tokenizer(TEXTS), 6)
    assert Compute().micro_batch == "auto"
    assert clip.micro_batch is None


@pytest.mark.parametrize(("batch_norm", "told"), [("frozen", 2), ("train", None)])
def test_a_gpu_takes_what_fits(batch_norm, told, backbones, monkeypatch):
    """A GPU's counts, for which the CPU's stand in."""
    clip = clips.load(backbones["resnet"], None, CPU)
    tokens = clip.tokenizer(TEXTS)
    free = measured(clip).parts(3) / (1 - memory.SPARED)
    clip.model.eval()
    monkeypatch.setattr(memory, "on_gpu", lambda clip: True)
    with LiveBytes() as live:
        live.free = lambda: free
        monkeypatch.setattr(memory, "CudaMeter", lambda device: live)
        if told is None:
            with pytest.raises(UserError, match=r"finetune\.batch_size to 2"):
                prepare.prepare_training(clip, Compute(), tokens, 48, batch_norm)
        else:
            prepare.prepare_training(clip, Compute(), tokens, 48, batch_norm)
            assert clip.micro_batch == told
            assert not clip.model.training


@pytest.mark.parametrize(
    ("at_once", "divisible", "advice"),
    [
        (64, True, r"with 64 images .*; set compute\.micro_batch to 32\."),
        (64, False, r"set finetune\.batch_size to 32\."),
        (1, True, r"set compute\.gradient_checkpointing to true"),
    ],
)
def test_running_out_of_memory_is_one_sentence(at_once, divisible, advice):
    wanted = f"^Training ran out of GPU memory .*{advice}"
    with pytest.raises(UserError, match=wanted), memory.explained(at_once, divisible=divisible):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
