import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.backbones import CPU

from latteclip.clip import finetuned
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.core.errors import UserError

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def not_finite(folder):
    state = load_file(folder / WEIGHTS)
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, folder / WEIGHTS)


def of_no_class(folder):
    head, described = load_classifier(folder / clips.CLASSIFIER)
    described.pop("classnames")
    save_classifier(folder / clips.CLASSIFIER, head, described)


def with_widths(widths):
    def spoil(folder):
        head, described = load_classifier(folder / clips.CLASSIFIER)
        save_classifier(
            folder / clips.CLASSIFIER, head, {**described, "encoder_widths": widths}
        )

    return spoil


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (not_finite, r"visual\.proj"),
        (of_no_class, "classnames"),
        *((with_widths(widths), "width") for widths in ("64", ["a"], 64, [True, -1], None)),
    ],
)
def test_what_cannot_be_a_model_is_refused(folder, spoil, wrong):
    spoil(folder)
    with pytest.raises(UserError, match=wrong) as error:
        finetuned.load(folder, CPU)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} has no chosen model"):
        finetuned.find(tmp_path)
