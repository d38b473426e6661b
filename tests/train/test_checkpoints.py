import logging
import re

import pytest
import torch

from latteclip.core import hashing
from latteclip.core.errors import UserError
from latteclip.train import checkpoints
from latteclip.train.checkpoints import Checkpoint

IDENTITY = {"finetune": {"lr": 0.1, "epochs": 3}, "seed": 4, "pretrained": None}


def make(steps):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T * steps, "n": torch.tensor(steps)}
    return Checkpoint(steps, tensors, {"identity": IDENTITY, "rate": 0.1 + steps})


@pytest.fixture
def folder(tmp_path):
    for steps in (9, 10, 11):
        checkpoints.save(tmp_path / "c", make(steps))
    return tmp_path / "c"


def test_what_is_saved_comes_back_exactly(folder):
    saved = checkpoints.latest(folder)
    assert saved.steps == 11
    assert saved.values == make(11).values
    for name, tensor in make(11).tensors.items():
        assert torch.equal(saved.tensors[name], tensor)


def test_only_the_newest_two_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000011"]


def truncate_tensors(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def remove_values(path):
    (path / "state.json").unlink()


def flip_a_tensor(path):
    file = path / "state.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)


def no_identity(path):
    (path / "state.json").write_text('{"rate": 1}')
    hashing.write_sums(path)


@pytest.mark.parametrize("spoil", [truncate_tensors, remove_values, flip_a_tensor, no_identity])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(folder, spoil, caplog):
    spoil(folder / "step-00000011")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest(folder).steps == 10
    assert "step-00000011" in caplog.text


def test_a_checkpoint_that_is_half_written_is_not_seen_and_removed_by_the_next(folder):
    (folder / "step-00000011").rename(folder / ".step-00000012.77.tmp")
    assert checkpoints.latest(folder).steps == 10
    checkpoints.save(folder, make(11))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"finetune": {"lr": 0.2, "epochs": 3}}, r"finetune\.lr"),
        ({"seed": 5}, "seed"),
        ({"new": 1}, "new"),
    ],
)
def test_other_settings_are_named(folder, change, named):
    saved = checkpoints.latest(folder)
    assert checkpoints.difference(IDENTITY, saved) is None
    assert re.search(named, checkpoints.difference(IDENTITY | change, saved))


def test_what_is_set_aside_stays_until_the_training_is_finished(folder, caplog):
    checkpoints.aside_of(folder).mkdir()  # of an earlier change
    checkpoints.set_aside(folder, "finetune.lr 0.1, not 0.2")
    assert checkpoints.latest(folder) is None
    assert checkpoints.latest(checkpoints.aside_of(folder)).steps == 11
    assert "finetune.lr" in caplog.text and str(checkpoints.aside_of(folder)) in caplog.text
    checkpoints.save(folder, make(1))
    checkpoints.remove(folder)
    assert not folder.exists() and not checkpoints.aside_of(folder).exists()


@pytest.mark.parametrize("error", [KeyError("history"), RuntimeError("size mismatch\nfor a")])
def test_a_checkpoint_that_does_not_fit_is_one_sentence(folder, error):
    with (
        pytest.raises(UserError, match=re.escape(str(folder))) as told,
        checkpoints.fitting(folder),
    ):
        raise error
    assert "\n" not in str(told.value)
