"""Damaged and twisted model folders: the model that was saved, or one sentence."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backbones import CPU, pictures
from support.fuzz import damaged, twisted

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.clip_config import TEXT_TOWER
from latteclip.clip.model_files import CLIP_CONFIG
from latteclip.core.errors import UserError

DESCRIBING = [
    CLIP_CONFIG,
    "tokenizer_config.json",
    "tokenizer.json",
    f"{TEXT_TOWER}/config.json",
]


@pytest.fixture(scope="module")
def folder(saved, tmp_path_factory):
    """Its copy, of which each example spoils one file."""
    return shutil.copytree(saved, tmp_path_factory.mktemp("spoilt") / "model")


@torch.no_grad()
def classify(folder):
    """Classify two images, or raise one sentence."""
    try:
        model = clips.load_finetuned(folder, CPU)
        model.clip.tokenizer(["a thing"])
        model.classifier.scores(encode.encode_images(model.clip, pictures(model.clip, 2)))
    except UserError as error:
        assert "\n" not in str(error)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_one_sentence(saved, folder, data):
    files = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(files))
    (folder / name).write_bytes(data.draw(damaged((saved / name).read_bytes())))
    classify(folder)
    shutil.copy(saved / name, folder / name)


@settings(deadline=None)
@given(st.data())
def test_a_twisted_description_is_one_sentence(saved, folder, data):
    name = data.draw(st.sampled_from(DESCRIBING))
    twist = twisted((saved / name).read_text("utf-8"))
    (folder / name).write_text(data.draw(twist), "utf-8")
    classify(folder)
    shutil.copy(saved / name, folder / name)
