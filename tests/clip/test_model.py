import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.backbones import TEXTS, pictures
from support.tiny import BACKBONES, write_backbone

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.core.errors import UserError


def test_a_name_of_open_clip_takes_a_weights_file_and_may_have_a_slash(
    tmp_path, monkeypatch
):
    write_backbone("custom_text", tmp_path / "folder")
    config = BACKBONES["custom_text"][0]
    text = {**config["text_cfg"], "hf_tokenizer_name": str(tmp_path / "folder")}
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "ViT-tiny-8", {**config, "text_cfg": text})
    weights = str(tmp_path / "folder" / "open_clip_model.safetensors")
    clip = clips.load("ViT-tiny/8", weights, torch.device("cpu"))
    clips.save(clip, Classifier.of(torch.eye(2)), ["a", "b"], "{}", tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    tokens = open_clip.get_tokenizer(name)(["a red thing"])
    assert torch.equal(tokens, clip.tokenizer(["a red thing"]))
    model = open_clip.create_model(name).eval()
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))


def test_saving_twice_gives_the_same_bytes(demo_clip, tmp_path):
    classifier = Classifier.of(torch.randn(3, 128))
    written = []
    for number in range(4):  # sets have another order in one of two
        folder = tmp_path / str(number)
        clips.save(demo_clip, classifier, ["a", "b", "c"], "{}.", folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert all(files == written[0] for files in written)


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("no-such-model", "openai"), ("ViT-B-32", "no_such_tag"), ("local-dir:nowhere", None)],
)
def test_a_model_that_is_not_there_is_one_sentence_that_names_it(model, pretrained):
    with pytest.raises(UserError, match=model):
        clips.load(model, pretrained, torch.device("cpu"))


@torch.no_grad()
def test_stock_open_clip_loads_every_kind_that_was_saved(clip, tmp_path):
    torch.manual_seed(7)
    for (
        tensor
    ) in clip.model.state_dict().values():  # as if trained, running statistics included
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand_like(tensor)
    classifier = Classifier.of(torch.randn(4, 6))
    clips.save(clip, classifier, ["a", "b", "c", "d é"], "a {}", tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, require_pretrained=True
    )
    model.eval()
    assert type(model) is type(clip.model)
    state = clip.model.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(
        torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items()
    )
    images, tokens = pictures(clip, 3), clip.tokenizer(TEXTS)
    assert torch.equal(model.encode_image(images), clip.model.encode_image(images))
    assert torch.equal(open_clip.get_tokenizer(name)(TEXTS), tokens)
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(preprocess(picture), clip.preprocess(picture))
    loaded, described = load_classifier(tmp_path / "model" / clips.CLASSIFIER)
    assert torch.equal(loaded.weights, classifier.weights)
    assert described["classnames"] == ["a", "b", "c", "d é"]
