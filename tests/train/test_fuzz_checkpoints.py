"""Damaged checkpoints: the newest whole one is taken."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.damage import damaged, twisted

from latteclip.core import checksums
from latteclip.train import checkpoints
from latteclip.train.checkpoints import Checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints after 1 and 2 steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for steps in (1, 2):
        tensors = {"model.a": torch.full((3, 4), float(steps)), "predicted": torch.arange(5)}
        values = {"identity": {"seed": 4, "finetune": {"lr": 0.1}}, "history": [{"loss": 0.5}]}
        checkpoints.save(folder, Checkpoint(steps, tensors, values))
    return folder


@settings(deadline=None)
@given(st.data())
def test_of_a_damaged_one_nothing_is_taken(folder, data):
    newest = folder / "step-00000002"
    file = data.draw(st.sampled_from(sorted(newest.iterdir())))
    whole = file.read_bytes()
    file.write_bytes(data.draw(damaged(whole)))
    found = checkpoints.latest(folder)
    file.write_bytes(whole)
    value = found.steps
    assert value in (1, 2)
    assert torch.equal(found.tensors["model.a"], torch.full((3, 4), float(value)))
    assert found.values == checkpoints.latest(folder).values


@settings(deadline=None)
@given(st.data())
def test_one_of_another_kind_gives_way_to_the_one_before(folder, tmp_path_factory, data):
    copy = shutil.copytree(
        folder, tmp_path_factory.getbasetemp() / "fuzzed checkpoints", dirs_exist_ok=True
    )
    file = copy / "step-00000002" / "state.json"
    text = (folder / "step-00000002" / "state.json").read_text("utf-8")
    file.write_text(data.draw(twisted(text)), "utf-8")
    checksums.write(file.parent)
    found = checkpoints.latest(copy)
    assert isinstance(found.values["identity"], dict)
