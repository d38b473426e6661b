"""Every kind of CLIP that open_clip builds: loaded, encoded, trained, saved."""

import json
import os
import shutil
import weakref

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny import BACKBONES, CONTEXT, EOS, PAD, tiny_clip, write_backbone
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.core.errors import UserError
from latteclip.train.objectives.losses import contrastive

CPU = torch.device("cpu")
KINDS = list(BACKBONES)
TRIMMED = ["vit", "convnext", "custom_text", "resnet"]
WITH_BATCH_NORM = ["resnet"]
TEXTS = [
    "a photo of a red striped thing",
    "blue",
    "sky",
    "the dotted and woven thing with the grey sky and a photo of the sky",
    "a grey thing",
    "woven",
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Names by which the kinds are loaded; each is written when it is first asked for."""

    class Names(dict):
        def __missing__(self, kind):
            self[kind] = write_backbone(kind, tmp_path_factory.mktemp("backbones") / kind)
            return self[kind]

    return Names()


@pytest.fixture
def clip(names, kind):
    return clips.load(names[kind], None, CPU)


def pictures(clip, n):
    """n images of the size that the model wants, each of another colour."""
    generator = torch.Generator().manual_seed(n)
    height, width = np.broadcast_to(clip.model.visual.image_size, 2)
    colours = 2 * torch.randn(n, 3, 1, 1, generator=generator)
    return colours + torch.randn(n, 3, height, width, generator=generator)


def stock_images(clip, images):
    return F.normalize(clip.model.encode_image(images), dim=-1)


def stock_texts(clip, tokens):
    return F.normalize(clip.model.encode_text(tokens), dim=-1)


def gradients(clip, encode_images=clips.encode_images, encode_texts=clips.encode_texts):
    """Features of as many pictures as TEXTS, of the TEXTS, and the gradients of their loss."""
    clip.model.zero_grad()
    features = encode_images(clip, pictures(clip, len(TEXTS)))
    texts = encode_texts(clip, clip.tokenizer(TEXTS))
    loss = contrastive(features, texts, clip.model.logit_scale.exp())
    loss.backward()
    named = clip.model.named_parameters()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return torch.cat([features, texts]).detach(), found


def assert_same_gradients(left, right, rtol=1e-4):
    torch.testing.assert_close(left[0], right[0], rtol=rtol, atol=1e-6)
    assert left[1].keys() == right[1].keys()
    largest = max(gradient.abs().max() for gradient in right[1].values())
    for name, gradient in right[1].items():
        torch.testing.assert_close(
            left[1][name], gradient, rtol=rtol, atol=1e-6 * float(largest), msg=name
        )


def test_features_are_those_of_open_clip_at_full_length(clip, kind):
    tokens, images = clip.tokenizer(TEXTS), pictures(clip, 3)
    assert tokens.shape == (len(TEXTS), CONTEXT)
    texts = clips.encode_texts(clip, tokens)
    torch.testing.assert_close(texts, stock_texts(clip, tokens), rtol=1e-5, atol=1e-6)
    assert torch.equal(clips.encode_images(clip, images), stock_images(clip, images))
    assert texts.shape == (len(TEXTS), BACKBONES[kind][0]["embed_dim"])
    alike = texts @ texts.T - torch.eye(len(TEXTS))
    assert alike.max() < 0.9999  # or the texts could be mixed up unseen


def test_gradients_are_those_of_open_clip_at_full_length(clip):
    ours = gradients(clip)
    assert_same_gradients(ours, gradients(clip, stock_images, stock_texts))


def test_gradients_reach_every_parameter_of_both_towers(clip):
    _, found = gradients(clip)
    without = {"logit_bias"}  # a constant, which the contrastive loss does not see
    for name, parameter in clip.model.named_parameters():
        if name in without or name.startswith("text_decoder"):
            assert parameter.grad is None, name
        else:
            assert found[name].isfinite().all(), name
            assert found[name].any(), name


def test_only_towers_that_cannot_see_the_padding_are_trimmed(clip, kind):
    assert (clips.CausalText.of(clip.model) is not None) == (kind in TRIMMED)


def test_full_length_matters_to_a_tower_that_sees_the_padding(names):
    clip = clips.load(names["siglip"], None, CPU)
    tokens = clip.tokenizer(["blue", "sky"])
    assert (tokens == PAD).sum() == 2 * (CONTEXT - 3)
    other = tokens.masked_fill(tokens == PAD, EOS)
    assert not torch.allclose(clips.encode_texts(clip, tokens), clips.encode_texts(clip, other))


@pytest.mark.parametrize("pool_type", ["first", "last", "argmax", "eos"])
@pytest.mark.parametrize(
    "tower",
    [{}, {"embed_cls": True}, {"no_causal_mask": True}, {"proj_bias": True}],
    ids=lambda tower: "".join(tower) or "causal",
)
def test_custom_text_towers_of_every_make_have_the_stock_features(pool_type, tower):
    clip = tiny_clip(tower=open_clip.CustomTextCLIP, pool_type=pool_type, **tower)
    trimmed = pool_type in ("argmax", "eos") and tower.keys() <= {"proj_bias"}
    assert (clips.CausalText.of(clip.model) is not None) == trimmed
    tokens = clip.tokenizer(TEXTS)
    torch.testing.assert_close(
        clips.encode_texts(clip, tokens), stock_texts(clip, tokens), rtol=1e-5, atol=1e-6
    )


def test_nothing_is_encoded_to_no_feature(clip, kind):
    none = (0, BACKBONES[kind][0]["embed_dim"])
    assert clips.encode_texts(clip, clip.tokenizer(TEXTS)[:0]).shape == none
    assert clips.encode_images(clip, pictures(clip, 3)[:0]).shape == none


@torch.no_grad()
def test_stock_open_clip_loads_what_was_saved(clip, tmp_path):
    torch.manual_seed(7)
    for tensor in clip.model.state_dict().values():  # as if trained, running statistics included
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand_like(tensor)
    classifier = torch.randn(4, 6)
    clips.save(clip, classifier, ["a", "b", "c", "d é"], "a {}", tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
    model.eval()
    assert type(model) is type(clip.model)
    state = clip.model.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    images, tokens = pictures(clip, 3), clip.tokenizer(TEXTS)
    assert torch.equal(model.encode_image(images), clip.model.encode_image(images))
    assert torch.equal(open_clip.get_tokenizer(name)(TEXTS), tokens)
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))
    assert torch.equal(preprocess(picture()), clip.preprocess(picture()))
    loaded, described = load_classifier(tmp_path / "model" / clips.CLASSIFIER)
    assert torch.equal(loaded, classifier)
    assert described["classnames"] == ["a", "b", "c", "d é"]


def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("again", [False, True], ids=["loaded", "saved and loaded"])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_prepared_as_the_model_says(kind, again, names, tmp_path):
    clip = clips.load(names[kind], None, CPU)
    if again:
        clips.save(clip, torch.eye(2), ["a", "b"], "{}", tmp_path / "model")
        clip = clips.load(f"local-dir:{tmp_path / 'model'}", None, CPU)
    config, preprocess = BACKBONES[kind]
    side = config["vision_cfg"]["image_size"]
    wanted = open_clip.image_transform(side, is_train=False, **preprocess)
    assert torch.equal(clip.preprocess(picture()), wanted(picture()))
    white = clip.augment(Image.new("RGB", (90, 70), "white"))  # jitter may darken it, evenly
    assert white.shape == (3, side, side)
    mean = torch.tensor(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN))
    std = torch.tensor(preprocess.get("std", open_clip.OPENAI_DATASET_STD))
    shades = white[:, 0, 0] * std + mean
    torch.testing.assert_close(shades, shades[:1].expand(3), rtol=0, atol=1e-5)
    assert 0 < shades[0] < 1 + 1e-5


def test_siglip_keeps_its_scale_and_its_bias(names):
    clip = clips.load(names["siglip"], None, CPU)
    assert clip.model.logit_scale.item() == pytest.approx(4.77)
    assert clip.model.logit_bias.item() == -10


def test_a_model_of_the_hub_is_loaded_as_a_folder_is(names, tmp_path, monkeypatch):
    """The hub itself is played by its cache, which huggingface_hub reads where it is offline."""
    commit = "0" * 40
    cache = tmp_path / "hub" / "models--someone--tiny-siglip"
    snapshot, absent = cache / "snapshots" / commit, cache / ".no_exist" / commit
    shutil.copytree(names["siglip"].removeprefix("local-dir:"), snapshot)
    config = json.loads((snapshot / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tiny-siglip"
    (snapshot / "open_clip_config.json").write_text(json.dumps(config))
    for path in (cache / "refs" / "main", absent / "config.json"):
        path.parent.mkdir(parents=True)
        path.write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    clip, local = (
        clips.load(name, None, CPU) for name in ("hf-hub:someone/tiny-siglip", names["siglip"])
    )
    tokens = clip.tokenizer(TEXTS)
    assert torch.equal(tokens, local.tokenizer(TEXTS))
    assert torch.equal(clips.encode_texts(clip, tokens), clips.encode_texts(local, tokens))
    assert torch.equal(clip.preprocess(picture()), local.preprocess(picture()))
    clips.save(clip, torch.eye(2), ["a", "b"], "{}", tmp_path / "model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    saved = f"local-dir:{tmp_path / 'model'}"
    assert torch.equal(open_clip.get_tokenizer(saved)(TEXTS), tokens)
    assert torch.equal(
        open_clip.create_model(saved).eval().encode_text(tokens), clip.model.encode_text(tokens)
    )


def test_a_model_that_the_hub_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf-hub:nobody/nothing"):
        clips.load("hf-hub:nobody/nothing", None, CPU)


def test_weights_of_another_activation_are_refused(monkeypatch, tmp_path):
    """OpenAI's were trained with QuickGELU; the plain name stands for GELU."""
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(weights))
    with pytest.raises(UserError, match="QuickGELU mismatch"):
        clips.load("ViT-B-32", "openai", CPU)


def prepare(clip, **chosen):
    clips.prepare_training(
        clip, **{"compile": False, "gradient_checkpointing": False, "micro_batch": None, **chosen}
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITH_BATCH_NORM])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradient_checkpointing_changes_no_gradient(kind, training, names):
    clip = clips.load(names[kind], None, CPU)
    clip.model.train(training)
    switch_off_dropout(clip.model)
    before = gradients(clip)
    prepare(clip, gradient_checkpointing=True)
    forward = count_calls(clip.model.visual), count_calls(text_module(clip))
    assert_same_gradients(gradients(clip), before)
    # transformers recomputes in training mode alone
    recomputed = [calls["n"] > 1 for calls in forward]
    assert recomputed == [True, training or not kind.startswith("hf")]


@pytest.mark.parametrize("kind", ["siglip", "convnext", "hf_mean", "coca"])
def test_both_ways_to_save_memory_go_together(kind, names):
    clip = clips.load(names[kind], None, CPU)
    clip.model.train()
    switch_off_dropout(clip.model)
    before = gradients(clip)
    prepare(clip, gradient_checkpointing=True, micro_batch=4)
    assert_same_gradients(gradients(clip), before)


def switch_off_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def text_module(clip):
    return getattr(clip.model, "text", clip.model).transformer


def count_calls(tower):
    """Count forward passes of the LayerNorm of a tower's last block."""
    calls = {"n": 0}
    norms = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
        and any(part.isdigit() for part in name.split("."))
    ]
    norms[-1].register_forward_pre_hook(lambda *_: calls.update(n=calls["n"] + 1))
    return calls


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"micro_batch": 2}], ids=str)
def test_batch_norm_is_refused_where_it_would_see_other_batches(option, names):
    clip = clips.load(names["resnet"], None, CPU)
    with pytest.raises(UserError, match=f"compute.{next(iter(option))} .* BatchNorm"):
        prepare(clip, **option)


def test_a_tower_without_gradient_checkpointing_is_named(names):
    clip = clips.load(names["resnet"], None, CPU)
    for name, module in list(clip.model.visual.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            clip.model.visual.get_submodule(parent)._modules[child] = torch.nn.Identity()
    with pytest.raises(UserError, match=r"compute.gradient_checkpointing .* image tower Modified"):
        prepare(clip, gradient_checkpointing=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITH_BATCH_NORM])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_micro_batches_change_no_gradient(kind, size, names):
    clip = clips.load(names[kind], None, CPU)
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


def test_micro_batches_draw_the_same_dropout_again(names):
    """Numerical against analytical gradient: a recomputation with other draws would differ."""
    clip = clips.load(names["hf_mean"], None, CPU)
    clip.model.train()
    prepare(clip, micro_batch=2)
    bias = clip.model.text.transformer.encoder.layer[0].output.dense.bias

    def loss():
        torch.manual_seed(5)
        features = clips.encode_texts(clip, clip.tokenizer(TEXTS))
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


def test_micro_batches_are_for_gradients_alone(names):
    clip = clips.load(names["vit"], None, CPU)
    prepare(clip, micro_batch=2)
    calls = []
    clip.model.visual.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with torch.no_grad():
        clips.encode_images(clip, pictures(clip, 5))
    assert calls == [5]


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that existed at once among those made under it."""

    def __init__(self, inputs):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_of_a_step(clip, n):
    clip.model.zero_grad()
    images, tokens = pictures(clip, n), clip.tokenizer(["the dotted and woven thing"] * n)
    with LiveBytes([images, tokens]) as live:
        texts = clips.encode_texts(clip, tokens)
        contrastive(clips.encode_images(clip, images), texts, torch.tensor(10.0)).backward()
    return live.peak


@pytest.mark.parametrize("kind", ["custom_text", "siglip", "hf_mean"])
def test_micro_batches_hold_the_activations_of_one_part_at_a_time(kind, names):
    clip = clips.load(names[kind], None, CPU)
    weights = sum(p.numel() for p in clip.model.parameters()) * 4  # their gradients are counted
    whole, part = (peak_of_a_step(clip, n) - weights for n in (32, 4))
    assert whole > 5 * part
    prepare(clip, micro_batch=4)
    assert peak_of_a_step(clip, 32) - weights < 1.5 * part


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_channels_last_changes_no_feature_and_nothing_that_is_saved(kind, names, tmp_path):
    clip = clips.load(names[kind], None, CPU)
    images = pictures(clip, 3)
    before = clips.encode_images(clip, images)
    on_gpu(clip, prepare)
    assert clip.channels_last
    formats = []
    clip.model.visual.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(clips.encode_images(clip, images), before, rtol=1e-4, atol=1e-5)
    assert formats == [True]
    clips.save(clip, torch.eye(2), ["a", "b"], "{}", tmp_path / "model")
    again = clips.load(f"local-dir:{tmp_path / 'model'}", None, CPU)
    assert torch.equal(clips.encode_images(again, images), before)


def on_gpu(clip, function):
    clip.device = torch.device("cuda")
    function(clip)
    clip.device = CPU


@pytest.mark.parametrize("kind", ["vit", "siglip", "hf_mean"])
def test_channels_last_is_for_convolutions_alone(kind, names):
    clip = clips.load(names[kind], None, CPU)
    on_gpu(clip, prepare)
    assert not clip.channels_last


def test_channels_last_is_for_gpus_alone(names):
    clip = clips.load(names["convnext"], None, CPU)
    prepare(clip)
    assert not clip.channels_last


@pytest.mark.parametrize("precision", ["bf16", "fp16", "float32"])
def test_precision_changes_nothing_on_a_cpu(precision, names):
    clip = clips.load(names["custom_text"], None, CPU, precision)
    assert clip.precision == precision
    plain = clips.load(names["custom_text"], None, CPU)
    images = pictures(clip, 3)
    assert torch.equal(clips.encode_images(clip, images), clips.encode_images(plain, images))
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_micro_batches_under_autocast_have_the_gradients_of_the_batch(dtype, names, monkeypatch):
    """As on a GPU, where weights are cast once for all micro-batches of an encoding."""
    monkeypatch.setattr(clips.devices, "autocast", lambda *_: torch.autocast("cpu", dtype=dtype))
    clip = clips.load(names["custom_text"], None, CPU)
    before = gradients(clip)
    prepare(clip, micro_batch=2)
    after = gradients(clip)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0.02)
    for name, gradient in before[1].items():
        cosine = F.cosine_similarity(after[1][name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.98, name


def test_an_unknown_precision_is_refused(names):
    with pytest.raises(UserError, match=r"clip.precision 'fp8' is none of bf16, fp16, float32"):
        clips.load(names["custom_text"], None, CPU, "fp8")


def has_compiler():
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("kind", "others"),
    [("custom_text", {"gradient_checkpointing": True, "micro_batch": 4}), ("hf_mean", {})],
    ids=str,
)
def test_compiled_towers_have_the_same_features_and_gradients(kind, others, names):
    torch.compiler.reset()
    clip = clips.load(names[kind], None, CPU)
    del clip.model.visual.transformer.resblocks[1:]  # compilers are slow
    keys = list(clip.model.state_dict())
    before = gradients(clip)
    prepare(clip, compile=True, **others)
    assert list(clip.model.state_dict()) == keys
    assert_same_gradients(gradients(clip), before, rtol=1e-3)


def test_a_machine_that_cannot_compile_is_told_the_key(names, monkeypatch):
    def broken(function):
        def run(*_):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    clip = clips.load(names["vit"], None, CPU)
    with pytest.raises(UserError, match=r"compute.compile.*no compiler"):
        prepare(clip, compile=True)
