import errno
import functools
import os

import pytest
import torch
import torch.nn.functional as F
from support.backbones import CPU, TEXTS, limit_memory, pictures
from support.tiny import BACKBONES, CONTEXT, END, START, WIDTH, tiny_clip

from latteclip.clip import classifier, encode
from latteclip.clip import model as clips
from latteclip.core.errors import UserError
from latteclip.train.objectives.base import contrastive


def stock_images(clip, images):
    return F.normalize(clip.model.encode_image(images), dim=-1)


def stock_texts(clip, tokens):
    return F.normalize(clip.model.encode_text(tokens), dim=-1)


def gradients(clip, encode_images=encode.encode_images, encode_texts=encode.encode_texts):
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


def tokens_of_lengths(lengths):
    """Random texts that take this many tokens, START and END included."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def assert_stock_texts(clip, tokens):
    found = encode.encode_texts(clip, tokens)
    torch.testing.assert_close(found, stock_texts(clip, tokens), rtol=1e-5, atol=1e-6)
    return found


@pytest.mark.parametrize("pool_type", ["argmax", "eos"])
@pytest.mark.parametrize("projection", [{}, {"proj_type": "none", "width": WIDTH}])
def test_trimmed_texts_of_every_length_have_the_stock_features(pool_type, projection):
    order = torch.randperm(CONTEXT - 1, generator=torch.Generator().manual_seed(1))
    tokens = tokens_of_lengths([2 + int(i) for i in order])
    assert_stock_texts(tiny_clip(pool_type=pool_type, **projection), tokens)


def test_features_are_those_of_open_clip_at_full_length(clip, kind):
    tokens, images = clip.tokenizer(TEXTS), pictures(clip, 3)
    assert tokens.shape == (len(TEXTS), CONTEXT)
    texts = assert_stock_texts(clip, tokens)
    assert torch.equal(encode.encode_images(clip, images), stock_images(clip, images))
    assert texts.shape == (len(TEXTS), BACKBONES[kind][0]["embed_dim"])
    alike = texts @ texts.T - torch.eye(len(TEXTS))
    assert alike.max() < 0.9999  # or the texts could be mixed up unseen


def test_gradients_are_those_of_open_clip_and_reach_every_parameter(clip):
    features, found = gradients(clip)
    assert_same_gradients((features, found), gradients(clip, stock_images, stock_texts))
    without = {"logit_bias"}  # a constant, which the contrastive loss does not see
    for name, parameter in clip.model.named_parameters():
        if name in without or name.startswith("text_decoder"):
            assert parameter.grad is None, name
        else:
            assert found[name].isfinite().all() and found[name].any(), name


def test_micro_batches_halve_what_the_backward_pass_finds_in_memory(clip):
    tokens = clip.tokenizer(TEXTS * 3)
    for encoder, rows in (
        (encode.encode_images, pictures(clip, len(tokens))),
        (encode.encode_texts, tokens),
    ):
        clip.micro_batch = None
        encodes = functools.partial(encoder, clip)
        whole = encode.activations(clip, encodes, rows)
        clip.micro_batch = 2
        assert encode.activations(clip, encodes, rows) < whole / 2


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@torch.no_grad()
def test_batches_halve_until_they_fit_and_say_so_once(kind, backbones, monkeypatch, caplog):
    clip = clips.load(backbones[kind], None, CPU)
    images, tokens = pictures(clip, 9), clip.tokenizer(TEXTS * 6)
    wanted = encode.encode_images(clip, images), encode.encode_texts(clip, tokens)
    limit_memory(monkeypatch, clip, 2)
    for _ in range(2):
        found = encode.encode_images(clip, images), encode.encode_texts(clip, tokens)
        for pair in zip(found, wanted, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
    assert clip.at_once == 2
    assert len([record for record in caplog.records if "memory" in record.message]) == 2


def test_no_memory_for_a_single_image_is_a_sentence_and_training_batches_do_not_halve(
    backbones, monkeypatch
):
    clip = clips.load(backbones["vit"], None, CPU)
    limit_memory(monkeypatch, clip, 0)
    with pytest.raises(torch.OutOfMemoryError):
        encode.encode_images(clip, pictures(clip, 5))
    with torch.no_grad(), pytest.raises(UserError, match=r"clip\.model"):
        encode.encode_images(clip, pictures(clip, 5))


def test_a_full_disk_is_noticed_before_a_row_is_written(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(classifier.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        classifier.FeatureMemmap(23, 3)
