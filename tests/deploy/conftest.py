"""A tuned model, its exports, and photographs of every kind."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from support.backbones import CLASSNAMES, TEMPLATES, WRITTEN
from support.worlds import Taken

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.core.class_templates import ClassTemplates
from latteclip.deploy.export_model import export


def write_model(clip, folder):
    """Write a tuned model whose classifier has a bias, and rows of many lengths."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(len(CLASSNAMES), clip.width, generator=draw) / 9
    bias = torch.randn(len(CLASSNAMES), generator=draw) / 9
    words = ClassTemplates(TEMPLATES, {"grey": ["silver", "ash"]}, WRITTEN)
    head = Classifier.of(weights, bias)
    clips.save_finetuned(clip, head, CLASSNAMES, words, folder)
    return folder


@pytest.fixture(scope="session")
def model(demo_clip, tmp_path_factory):
    return write_model(demo_clip, tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    """Returns the folder of the model's export in a format, made once."""
    root = tmp_path_factory.mktemp("exports")

    def of(form):
        if form == "onnx":
            pytest.importorskip("onnxscript", reason="latteclip[onnx] is not installed")
        if not (root / form).exists():
            export(str(model), str(root / form), form)
        return root / form

    return of


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Photographs: wide, high, square, smaller than an input, turned, of 16 bits."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    sizes = [(97, 70), (70, 97), (64, 64), (31, 20), (20, 33), (640, 201), (155, 300)]
    for number, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 255, (height // 5 + 1, width // 5 + 1, 3))
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 1 + number
        paths.append(str(folder / f"{number}.png"))
        image = Image.fromarray(pixels.astype(np.uint8)).resize((width, height))
        image.save(paths[-1], exif=turned)
    paths.append(str(folder / "16_bit.png"))
    deep = np.linspace(0, 65_535, 90 * 80).reshape(90, 80).astype(np.uint16)
    Image.fromarray(deep).save(paths[-1])
    return paths


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """A dataset with labels, in the working directory."""
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    return Taken(tmp_path / "made")
