"""Requests that are too long are refused before the engine starts and an image is decoded."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from support import tiny_lmms
from support.chat_server import MODEL
from support.commands import SETTINGS
from support.tiny import write_index, write_pseudo_labels

from latteclip.captions import caption
from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import TooLongError
from latteclip.captions.pictures import OVERVIEW, OVERVIEW_TOKENS, Layout, blanks
from latteclip.captions.processors import TokenCounter
from latteclip.captions.requests import GroupSettings
from latteclip.captions.room import check_room
from latteclip.captions.runner import CaptionJob
from latteclip.core.errors import UserError

N, SIZE = 8, (70, 64)  # the size that `write_index` tells
GROUPS = GroupSettings(seed=0, canvas=112, gap=4, layout="multi_image")
ALONE, SEVERAL, SQUARE = Layout(), Layout("multi_image"), Layout(square=OVERVIEW)
PROMPT = "What do all of them have in common?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_lmms.llava_next(tmp_path_factory.mktemp("llava_next"))


@pytest.fixture
def undecodable(tmp_path):
    """Captions groups of images that nobody can decode: who tries says so."""
    files = [str(tmp_path / f"{number}.png") for number in range(N)]
    for file in files:
        Path(file).write_text(f"no picture {file}")
    index = write_index(tmp_path / "i.parquet", files, ["train"] * N, [0] * N, ["a", "b"])
    names = [Path(file).name for file in files]
    labels = write_pseudo_labels(tmp_path / "labels.parquet", names, [0] * N)

    def caption_groups(settings, groups=GROUPS):
        job = CaptionJob(settings, str(tmp_path / "captions.parquet"), None, threads=1)
        caption.caption_groups(index, labels, PROMPT, groups, job)

    return caption_groups


def tokens(model, layout):
    """Tokens of a group, with its prompt."""
    count = TokenCounter(dataclasses.replace(SETTINGS, model=model, max_model_len=9999), 1)
    return count(PROMPT, blanks([SIZE] * 4, layout))


def test_groups_that_are_too_long_are_refused_with_what_helps(model, undecodable, monkeypatch):
    monkeypatch.setattr(engines, "start", None)  # is not called
    canvas = tokens(model, Layout("grid", GROUPS.canvas, GROUPS.gap))
    several = tokens(model, SEVERAL)
    limit = canvas + SETTINGS.max_new_tokens
    assert limit < several
    settings = dataclasses.replace(SETTINGS, engine="vllm", model=model, max_model_len=limit)
    with pytest.raises(UserError) as caught:
        undecodable(settings)
    message = str(caught.value)
    assert "captioner.max_model_len" in message
    assert str(several + SETTINGS.max_new_tokens) in message
    assert "groups.layout" in message
    assert "square_side" not in message  # is longer for this model


def test_what_fits_goes_on_to_decode_images(model, undecodable, caplog):
    caplog.set_level(logging.INFO)
    limit = tokens(model, SEVERAL) + SETTINGS.max_new_tokens
    settings = dataclasses.replace(SETTINGS, model=model, max_model_len=limit)
    with pytest.raises(UserError, match=r"\.png"):
        undecodable(settings)
    assert f"{N} requests" in caplog.text


@pytest.mark.parametrize("part", ["image_processor", "chat_template"])
def test_a_model_that_cannot_be_asked_says_so_before_an_image_is_decoded(
    undecodable, part, tmp_path
):
    tokenizer = tiny_lmms.tokens("</s>", "<pad>", "<image>").tokenizer
    if part == "chat_template":
        processor = tiny_lmms.llava_next_processor(tokenizer, 56)
        processor.chat_template = None
        processor.save_pretrained(tmp_path / "model")
    else:
        tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    lack = {"image_processor": "picture", "chat_template": "template"}
    with pytest.raises(UserError, match=lack[part]):
        undecodable(dataclasses.replace(SETTINGS, model=str(tmp_path / "model")))


def test_a_server_that_refuses_says_so_before_an_image_is_decoded(undecodable, server):
    server.fail = lambda number, body: (400, {})
    settings = dataclasses.replace(SETTINGS, engine="openai", model=MODEL)
    with pytest.raises(UserError, match="HTTP 400"):
        undecodable(settings)
    assert len(server.requests) == 3  # as it is, as one canvas, as overviews


def by_area(prompt, pictures):
    """As a model counts that sees 14 pixels a token and reads 2,000 of them."""
    n = len(prompt.split()) + sum(each.width * each.height // 14**2 for each in pictures)
    if n > 2000:
        raise TooLongError(f"{n} tokens", "buy a larger model")
    return n


def test_a_few_that_are_too_long_are_a_warning(caplog):
    requests = [("What?", ((100, 100),))] * 3 + [("What?", ((1000, 1000),))]
    check_room(by_area, requests, ALONE, {}, 0.05)
    assert "5103" in caplog.text


@pytest.mark.parametrize(
    ("size", "small"),
    [((500, 375), 1368), ((375, 500), 1032), ((64, 64), 1176), ((400, 200), 1752)],
)
def test_llava_reads_a_square_of_its_overviews_size_in_one_number_of_tokens(size, small, tmp_path):
    tokenizer = tiny_lmms.tokens("</s>", "<pad>", "<image>").tokenizer
    tiny_lmms.llava_next_processor(tokenizer, 336).save_pretrained(tmp_path)
    count = TokenCounter(dataclasses.replace(SETTINGS, model=str(tmp_path), max_model_len=9999), 1)
    text = count("What?", []) + 1  # the line break behind a picture
    assert count("What?", blanks([size], SQUARE)) - text == OVERVIEW_TOKENS
    # To be small is not enough: a wide picture gets a second tile, part of it empty.
    assert count("What?", blanks([size], Layout(max_side=336))) - text == small
