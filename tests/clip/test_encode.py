import open_clip
import pytest
import torch
from support import small_memory
from support.backbones import (
    CPU,
    TEXTS,
    assert_same_gradients,
    gradients,
    pictures,
    stock_images,
    stock_texts,
)
from support.tiny import (
    BACKBONES,
    CONTEXT,
    DEMO_CLIP,
    END,
    EOS,
    PAD,
    START,
    WIDTH,
    tiny_clip,
    write_pictures,
)

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.encode import encode_files
from latteclip.core.errors import UserError


def tokens_of_lengths(lengths):
    """Random texts that take this many tokens, START and END included."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


@pytest.mark.parametrize("pool_type", ["argmax", "eos"])
@pytest.mark.parametrize("projection", [{}, {"proj_type": "none", "width": WIDTH}])
def test_trimmed_texts_of_every_length_have_the_stock_features(pool_type, projection):
    clip = tiny_clip(pool_type=pool_type, **projection)
    order = torch.randperm(CONTEXT - 1, generator=torch.Generator().manual_seed(1))
    tokens = tokens_of_lengths([2 + int(i) for i in order])
    torch.testing.assert_close(
        encode.encode_texts(clip, tokens), stock_texts(clip, tokens), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("lengths", [[9], [3, 3], [16, 16, 16, 16, 2], [5] * 7])
def test_any_number_of_texts_keeps_its_order(lengths):
    clip = tiny_clip()
    tokens = tokens_of_lengths(lengths)
    torch.testing.assert_close(
        encode.encode_texts(clip, tokens), stock_texts(clip, tokens), rtol=1e-5, atol=1e-6
    )


def test_short_texts_are_encoded_without_their_padding(monkeypatch):
    clip = tiny_clip()
    shapes = []
    forward = clip.model.token_embedding.forward
    monkeypatch.setattr(
        clip.model.token_embedding, "forward", lambda t: (shapes.append(t.shape), forward(t))[1]
    )
    encode.encode_texts(clip, tokens_of_lengths([16, 4, 9, 3, 8, 16]))
    assert [tuple(shape) for shape in shapes] == [(2, 4), (2, 9), (2, 16)]


@pytest.mark.parametrize(
    "other",
    [
        {"no_causal_mask": True},
        {"tower": open_clip.CustomTextCLIP, "no_causal_mask": True},
        {"tower": open_clip.CustomTextCLIP, "embed_cls": True},
        {"pool_type": "last"},
    ],
    ids=str,
)
def test_towers_that_see_the_padding_get_the_full_length(other):
    clip = tiny_clip(**other)
    tokens = tokens_of_lengths([7, 3, 16, 2, 11])
    torch.testing.assert_close(
        encode.encode_texts(clip, tokens), stock_texts(clip, tokens), rtol=1e-5, atol=1e-6
    )


def test_features_are_those_of_open_clip_at_full_length(clip, kind):
    tokens, images = clip.tokenizer(TEXTS), pictures(clip, 3)
    assert tokens.shape == (len(TEXTS), CONTEXT)
    texts = encode.encode_texts(clip, tokens)
    torch.testing.assert_close(texts, stock_texts(clip, tokens), rtol=1e-5, atol=1e-6)
    assert torch.equal(encode.encode_images(clip, images), stock_images(clip, images))
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


def test_full_length_matters_to_a_tower_that_sees_the_padding(backbones):
    clip = clips.load(backbones["siglip"], None, CPU)
    tokens = clip.tokenizer(["blue", "sky"])
    assert (tokens == PAD).sum() == 2 * (CONTEXT - 3)
    other = tokens.masked_fill(tokens == PAD, EOS)
    assert not torch.allclose(encode.encode_texts(clip, tokens), encode.encode_texts(clip, other))


@pytest.mark.parametrize("pool_type", ["last", "eos"])
@pytest.mark.parametrize(
    "tower",
    [{}, {"embed_cls": True}, {"no_causal_mask": True}, {"proj_bias": True}],
    ids=lambda tower: "".join(tower) or "causal",
)
def test_custom_text_towers_of_every_make_have_the_stock_features(pool_type, tower):
    clip = tiny_clip(tower=open_clip.CustomTextCLIP, pool_type=pool_type, **tower)
    trimmed = pool_type in ("argmax", "eos") and tower.keys() <= {"proj_bias"}
    assert (encode.CausalText.of(clip.model) is not None) == trimmed
    tokens = clip.tokenizer(TEXTS)
    torch.testing.assert_close(
        encode.encode_texts(clip, tokens), stock_texts(clip, tokens), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@torch.no_grad()
def test_batches_halve_until_they_fit_and_say_so_once(kind, backbones, monkeypatch, caplog):
    clip = clips.load(backbones[kind], None, CPU)
    images, tokens = pictures(clip, 9), clip.tokenizer(TEXTS * 6)
    wanted = encode.encode_images(clip, images), encode.encode_texts(clip, tokens)
    small_memory.limit(monkeypatch, clip, 2)
    for _ in range(2):
        found = encode.encode_images(clip, images), encode.encode_texts(clip, tokens)
        for pair in zip(found, wanted, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
    assert clip.at_once == 2
    assert len([record for record in caplog.records if "memory" in record.message]) == 2


@torch.no_grad()
def test_no_memory_for_a_single_image_is_a_sentence(backbones, monkeypatch):
    clip = clips.load(backbones["vit"], None, CPU)
    small_memory.limit(monkeypatch, clip, 0)
    with pytest.raises(UserError, match=r"clip\.model"):
        encode.encode_images(clip, pictures(clip, 5))


def test_training_batches_do_not_halve_by_themselves(backbones, monkeypatch):
    clip = clips.load(backbones["vit"], None, CPU)
    small_memory.limit(monkeypatch, clip, 2)
    with pytest.raises(torch.OutOfMemoryError):
        encode.encode_images(clip, pictures(clip, 5))


@torch.no_grad()
def test_features_of_files_do_not_depend_on_the_batch_size(demo_clip, tmp_path):
    paths = write_pictures(tmp_path, 5)
    wanted = torch.cat([encode_files(demo_clip, [path], 1, 1)[:] for path in paths])
    assert wanted.shape == (5, 128)
    torch.testing.assert_close(
        encode_files(demo_clip, paths, 2, 1)[:], wanted, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_batches_that_do_not_fit_halve_for_all_files(tmp_path, monkeypatch, caplog):
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, CPU)
    paths = write_pictures(tmp_path, 7)
    wanted = encode_files(clip, paths, 5, 1)[:]
    small_memory.limit(monkeypatch, clip, 2)
    torch.testing.assert_close(encode_files(clip, paths, 5, 1)[:], wanted, rtol=1e-4, atol=1e-5)
    assert len([record for record in caplog.records if "memory" in record.message]) == 1
