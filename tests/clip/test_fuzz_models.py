"""Damaged and twisted model folders: the model that was saved, or one sentence."""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backbones import CPU, pictures
from support.web import damaged

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.clip_config import TEXT_TOWER
from latteclip.clip.model_files import CLIP_CONFIG
from latteclip.core.errors import UserError

NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-9, 9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["/etc/passwd", "../..", "hf-hub:me/model", "local-dir:/tmp", "\x00"]),
)


@st.composite
def twisted(draw, text):
    """A JSON text in which one value is another one, missing, or has company."""
    values = json.loads(text)
    changed = copy.deepcopy(values)
    places = list(_places(changed))
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        holder[key] = draw(NASTY)
    elif how == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=12))] = draw(NASTY)
    else:
        holder.append(draw(NASTY))
    return json.dumps(changed)


def _places(value):
    """(object or list, key) of every value inside."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


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
