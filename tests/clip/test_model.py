import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from support.backbones import CPU, TEXTS, pictures
from support.tiny import (
    BACKBONES,
    DEMO_CLIP,
    ENCODER_WIDTH,
    network_of,
    write_backbone,
    write_encoder,
    write_pictures,
)

from latteclip.clip import image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import ENCODERS, Classifier, load_classifier, save_classifier
from latteclip.core.errors import UserError
from latteclip.deploy.predictor import Predictor

WEIGHTS = "open_clip_model.safetensors"


def test_a_name_of_open_clip_takes_a_weights_file_and_may_have_a_slash(
    tmp_path, monkeypatch
):
    write_backbone("custom_text", tmp_path / "folder")
    config = BACKBONES["custom_text"][0]
    text = {**config["text_cfg"], "hf_tokenizer_name": str(tmp_path / "folder")}
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "ViT-tiny-8", {**config, "text_cfg": text})
    weights = str(tmp_path / "folder" / WEIGHTS)
    clip = clips.load("ViT-tiny/8", weights, CPU)
    clip.save(tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    tokens = open_clip.get_tokenizer(name)(["a red thing"])
    assert torch.equal(tokens, clip.tokenizer(["a red thing"]))
    model = open_clip.create_model(name).eval()
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("no-such-model", "openai"), ("ViT-B-32", "no_such_tag"), ("local-dir:nowhere", None)],
)
def test_a_model_that_is_not_there_is_one_sentence_that_names_it(model, pretrained):
    with pytest.raises(UserError, match=model):
        clips.load(model, pretrained, CPU)


@torch.no_grad()
def test_stock_open_clip_loads_every_kind_that_was_saved(clip, tmp_path):
    torch.manual_seed(7)
    # As if trained, running statistics included.
    for tensor in clip.model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand_like(tensor)
    clip.save(tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, require_pretrained=True
    )
    model.eval()
    assert type(model) is type(clip.model)
    state = clip.model.state_dict()
    assert model.state_dict().keys() == state.keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key])
    images, tokens = pictures(clip, 3), clip.tokenizer(TEXTS)
    assert torch.equal(model.encode_image(images), clip.model.encode_image(images))
    assert torch.equal(open_clip.get_tokenizer(name)(TEXTS), tokens)
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(preprocess(picture), clip.preprocess(picture))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def changed(change, file=clips.CLASSIFIER):
    """Spoils tensors of a file of a model, and the description of its classifier."""

    def spoil(folder):
        _, described = load_classifier(folder / clips.CLASSIFIER)
        tensors = load_file(folder / file)
        change(tensors, described)
        save_file(tensors, folder / file, {"classifier": json.dumps(described)})

    return spoil


def with_described(**values):
    return changed(lambda tensors, described: described.update(values))


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (changed(lambda t, d: t["visual.proj"].fill_(torch.nan), WEIGHTS), "visual.proj"),
        (changed(lambda t, d: t["classifier"][0].fill_(torch.nan)), "finite"),
        (changed(lambda t, d: t.update(classifier_bias=torch.ones(9))), "finite"),
        (changed(lambda t, d: d.pop("classnames")), "classnames"),
        (with_described(classnames=["a"]), "name"),
        (with_described(classnames=["a", "a", "b"]), "name"),
        (with_described(class_templates={"templates": ["{}"], "written": 5}), "written"),
        (with_described(class_templates={"templates": "{}"}), "templates"),
        *((with_described(encoder_widths=w), "width") for w in ("64", ["a"], 64, [-1])),
    ],
)
def test_what_cannot_be_a_model_is_refused(folder, spoil, wrong):
    spoil(folder)
    with pytest.raises(UserError, match=wrong) as error:
        clips.load_finetuned(folder, CPU)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} has no chosen model"):
        clips.find_model(tmp_path)


# --- image encoders beside CLIP -------------------------------------------------------------------

NAME = f"local-dir:{DEMO_CLIP}"
DESCRIBED = {
    "classnames": ["a", "b é"],
    "model": NAME,
    "pretrained": None,
    "class_templates": {"templates": ["a {}."]},
}


@torch.no_grad()
def test_image_models_beside_clip_stand_in_the_folder_and_predict(tmp_path, demo_clip):
    name = write_encoder(tmp_path / "encoder")
    draw = torch.Generator().manual_seed(0)
    classifier = Classifier.of(torch.randn(2, 128 + ENCODER_WIDTH, generator=draw))
    folder = tmp_path / "model"
    demo_clip.save(folder)
    image_encoders.load(name, CPU).save(folder / ENCODERS / "0")
    described = DESCRIBED | {"encoder_widths": [ENCODER_WIDTH]}
    save_classifier(folder / clips.CLASSIFIER, classifier, described)
    shutil.rmtree(tmp_path / "encoder")
    files = write_pictures(tmp_path / "pictures", 5)
    broken = tmp_path / "pictures" / "6.png"
    broken.write_bytes(b"no image")
    found = Predictor(tmp_path / "model", device="cpu", threads=1)
    predictions = found([*files[:3], broken, *files[3:]])
    network = network_of(tmp_path / "model" / "image_encoders" / "0")
    [encoder] = found.image_encoders
    assert predictions.pop(3).error
    assert [one.path for one in predictions] == files
    for file, prediction in zip(files, predictions, strict=True):
        image = Image.open(file).convert("RGB")
        parts = [
            demo_clip.model.encode_image(demo_clip.preprocess(image)[None]),
            network(encoder.preprocess(image)[None]),
        ]
        features = torch.cat([F.normalize(part, dim=1) for part in parts], dim=1)
        best = classifier.scores(features)[0].max()
        assert prediction.score == pytest.approx(best.item(), 1e-3)
