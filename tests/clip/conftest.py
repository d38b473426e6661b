import pytest
import torch
from support.backbones import CPU, KINDS

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.core.class_templates import ClassTemplates


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def clip(backbones, kind):
    return clips.load(backbones[kind], None, CPU)


@pytest.fixture(scope="module")
def saved(backbones, tmp_path_factory):
    """A tuned model of three classes, with a text tower of transformers."""
    folder = tmp_path_factory.mktemp("run") / "model"
    clip = clips.load(backbones["hf_mean"], None, CPU)
    head = Classifier.of(torch.randn(3, 24))
    clips.save_finetuned(clip, head, ["a", "b", "c"], ClassTemplates(["{}."]), folder)
    return folder
