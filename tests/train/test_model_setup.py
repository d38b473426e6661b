"""Every kind of CLIP that open_clip builds, trained in every way."""

import os
import shutil

import pytest
import torch
from support.backbones import (
    CPU,
    TEXTS,
    assert_same_gradients,
    gradients,
    pictures,
)

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.core.errors import UserError
from latteclip.train import model_setup as preparing
from latteclip.train.model_setup import (
    prepare_training,
    refuse_moving_statistics,
    training_mode,
)
from latteclip.train.settings import Compute


def prepare(clip, **chosen):
    compute = Compute(**{"micro_batch": None, **chosen})
    prepare_training(clip, compute, clip.tokenizer(TEXTS), len(TEXTS))


@pytest.mark.parametrize(("kind", "micro_batch"), [("convnext", None), ("hf_mean", 4)])
def test_gradient_checkpointing_changes_no_gradient(kind, micro_batch, backbones):
    clip = clips.load(backbones[kind], None, CPU)
    training_mode(clip.model, "frozen")
    switch_off_dropout(clip.model)
    before = gradients(clip)
    prepare(clip, gradient_checkpointing=True, micro_batch=micro_batch)
    forward = count_calls(clip.model.visual), count_calls(text_module(clip))
    assert_same_gradients(gradients(clip), before)
    assert all(calls["n"] > (3 if micro_batch else 1) for calls in forward)


def switch_off_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def text_module(clip):
    return getattr(clip.model, "text", clip.model).transformer


def count_calls(tower):
    """Count forward passes of the last norm in a tower's blocks."""
    calls = {"n": 0}
    norms = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d))
        and any(part.isdigit() for part in name.split("."))
    ]
    norms[-1].register_forward_pre_hook(lambda *_: calls.update(n=calls["n"] + 1))
    return calls


def test_frozen_batch_norm_alone_stays_in_evaluation_mode(backbones):
    clip = clips.load(backbones["resnet"], None, CPU)
    training_mode(clip.model, "frozen")
    norms = [m for m in clip.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    others = (torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.Linear)
    assert len(norms) > 5
    assert not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)
    assert all(module.training for module in clip.model.modules() if isinstance(module, others))
    training_mode(clip.model, "train")
    assert all(module.training for module in clip.model.modules())


@pytest.mark.parametrize(
    ("compute", "processes", "key"),
    [
        ({"gradient_checkpointing": True}, 1, r"compute\.gradient_checkpointing"),
        ({"micro_batch": 2}, 1, r"compute\.micro_batch"),
        ({}, 2, r"processes\.finetune"),
    ],
    ids=str,
)
def test_moving_statistics_are_refused_where_they_would_be_of_other_batches(
    compute, processes, key, backbones
):
    clip = clips.load(backbones["resnet"], None, CPU)
    refuse_moving_statistics(clip, Compute(), 1)
    with pytest.raises(UserError, match=key):
        refuse_moving_statistics(clip, Compute(**compute), processes)
    without = clips.load(backbones["vit"], None, CPU)
    refuse_moving_statistics(without, Compute(**compute), processes)


def test_a_tower_without_gradient_checkpointing_is_named(backbones):
    clip = clips.load(backbones["resnet"], None, CPU)
    for name, module in list(clip.model.visual.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            clip.model.visual.get_submodule(parent)._modules[child] = torch.nn.Identity()
    with pytest.raises(UserError, match=r"compute\.gradient_checkpointing"):
        prepare(clip, gradient_checkpointing=True)


@pytest.mark.parametrize(("kind", "size"), [("resnet", 4), ("hf_mean", 1)])
def test_micro_batches_change_no_gradient(kind, size, backbones):
    clip = clips.load(backbones[kind], None, CPU)
    if kind == "resnet":
        training_mode(clip.model, "frozen")
    before = gradients(clip)
    prepare(clip, micro_batch=size)
    rows = {"visual": [], "text": []}
    first = text_module(clip)
    clip.model.visual.register_forward_pre_hook(lambda _, args: rows["visual"].append(len(args[0])))
    first.register_forward_pre_hook(
        lambda _, args, kwargs: rows["text"].append(
            len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])
        ),
        with_kwargs=True,
    )
    assert_same_gradients(gradients(clip), before)
    for sizes in rows.values():
        assert max(sizes) <= size
        assert sum(sizes) == 2 * len(TEXTS)  # once forward and once again


def test_micro_batches_draw_the_same_dropout_again(backbones):
    """Numerical against analytical gradient: a recomputation with other draws would differ."""
    clip = clips.load(backbones["hf_mean"], None, CPU)
    clip.model.train()
    prepare(clip, micro_batch=2)
    bias = clip.model.text.transformer.encoder.layer[0].output.dense.bias

    def loss():
        torch.manual_seed(5)
        features = encode.encode_texts(clip, clip.tokenizer(TEXTS))
        return features.double() @ torch.linspace(-1, 1, features.shape[1], dtype=torch.double)

    clip.model.double()
    (gradient,) = torch.autograd.grad(loss().sum(), bias)
    with torch.no_grad():
        bias[0] += 1e-3
    after = loss().sum().item()
    with torch.no_grad():
        bias[0] -= 2e-3
    before = loss().sum().item()
    assert gradient[0].item() == pytest.approx((after - before) / 2e-3, rel=1e-2)


def test_channels_last_changes_no_feature_and_nothing_that_is_saved(backbones, tmp_path):
    """It is for convolutions on a GPU."""
    without = clips.load(backbones["vit"], None, CPU)
    on_gpu(without, prepare)
    assert not without.channels_last
    clip = clips.load(backbones["convnext"], None, CPU)
    prepare(clip)
    assert not clip.channels_last
    images = pictures(clip, 3)
    before = encode.encode_images(clip, images)
    on_gpu(clip, prepare)
    assert clip.channels_last
    formats = []
    clip.model.visual.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(encode.encode_images(clip, images), before, rtol=1e-4, atol=1e-5)
    assert formats == [True]
    clips.save(clip, Classifier.of(torch.eye(2)), ["a", "b"], "{}", tmp_path / "model")
    again = clips.load(f"local-dir:{tmp_path / 'model'}", None, CPU)
    assert torch.equal(encode.encode_images(again, images), before)


def on_gpu(clip, function):
    clip.device = torch.device("cuda")
    function(clip)
    clip.device = CPU


def has_compiler():
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_compiled_towers_have_the_same_features_and_gradients(backbones):
    torch.compiler.reset()
    clip = clips.load(backbones["custom_text"], None, CPU)
    for tower in (clip.model.visual.transformer, text_module(clip)):
        del tower.resblocks[1:]  # compilers are slow
    keys = list(clip.model.state_dict())
    before = gradients(clip)
    prepare(clip, compile=True, gradient_checkpointing=True, micro_batch=3)
    assert list(clip.model.state_dict()) == keys
    assert_same_gradients(gradients(clip), before, rtol=1e-3)


def test_a_machine_that_cannot_compile_is_told_the_key(backbones, monkeypatch):
    def broken(function):
        def run(*_):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    clip = clips.load(backbones["vit"], None, CPU)
    with pytest.raises(UserError, match=r"compute\.compile"):
        prepare(clip, compile=True)


def limit_memory(monkeypatch, rows):
    """Let the encoder hold so many images or texts at once."""
    encoded = encode._encode

    def bounded(clip, function, batch):
        if (clip.micro_batch or len(batch)) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encoded(clip, function, batch)

    monkeypatch.setattr(encode, "_encode", bounded)


@pytest.mark.parametrize(("rows", "chosen"), [(48, None), (47, 32), (1, 1)])
def test_the_largest_power_of_two_that_fits_is_chosen(rows, chosen, backbones, monkeypatch):
    clip = clips.load(backbones["vit"], None, CPU)
    limit_memory(monkeypatch, rows)
    assert preparing.micro_batch(clip, clip.tokenizer(TEXTS), 48) == chosen


def test_trying_changes_nothing(backbones):
    clip = clips.load(backbones["hf_mean"], None, CPU)  # which has dropout
    before = gradients(clip)
    saved = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    state = torch.get_rng_state()
    preparing.training_mode(clip.model, "frozen")
    preparing.micro_batch(clip, clip.tokenizer(TEXTS), 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(saved[name], each) for name, each in clip.model.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    clip.model.eval()
    assert_same_gradients(gradients(clip), before, rtol=0)


def test_no_room_for_one_image_is_a_sentence(backbones, monkeypatch):
    clip = clips.load(backbones["vit"], None, CPU)
    limit_memory(monkeypatch, 0)
    with pytest.raises(UserError, match=r"compute\.gradient_checkpointing"):
        preparing.micro_batch(clip, clip.tokenizer(TEXTS), 48)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_a_gpu_takes_what_fits(batch_norm, backbones, monkeypatch):
    clip = clips.load(backbones["resnet"], None, CPU)
    tokens = clip.tokenizer(TEXTS)
    monkeypatch.setattr(preparing, "on_gpu", lambda clip: True)
    limit_memory(monkeypatch, 3)
    if batch_norm == "train":
        with pytest.raises(UserError, match=r"finetune\.batch_size to 2"):
            preparing.prepare_training(clip, Compute(), tokens, 48, batch_norm)
    else:
        preparing.prepare_training(clip, Compute(), tokens, 48, batch_norm)
        assert clip.micro_batch == 2
        assert not clip.model.training


@pytest.mark.parametrize(
    ("images", "batch_norm", "advice"),
    [
        (64, "frozen", r"compute\.micro_batch to 32\."),
        (64, "train", r"finetune\.batch_size to 32\."),
        (1, "frozen", r"compute\.gradient_checkpointing"),
    ],
)
def test_running_out_of_memory_is_one_sentence(images, batch_norm, advice, backbones):
    clip = clips.load(backbones["resnet"], None, CPU)
    with (
        pytest.raises(UserError, match=advice),
        preparing.explaining_memory(clip, images, batch_norm),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
