import open_clip
import pytest
import torch
from support.tiny import DEMO_CLIP

from latteclip.clip import finetuned
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core.errors import UserError
from latteclip.deploy.assemble_model import PretrainedClip, assemble_model

NAME = f"local-dir:{DEMO_CLIP}"
DESCRIBED = {"classnames": ["a", "b é"], "model": NAME, "pretrained": None, "template": "a {}."}
CLASSIFIER = Classifier.of(torch.ones(2, 128), torch.tensor([0.5, -0.5]))


@pytest.fixture
def head(tmp_path):
    save_classifier(tmp_path / "c.safetensors", CLASSIFIER, DESCRIBED)
    return str(tmp_path / "c.safetensors")


def test_the_folder_is_the_pretrained_model_with_the_classifier(tmp_path, head, demo_clip):
    assemble_model(head, PretrainedClip(NAME, None), str(tmp_path / "model"))
    found = finetuned.load(tmp_path / "model", torch.device("cpu"))
    assert torch.equal(found.classifier.weights, CLASSIFIER.weights)
    assert torch.equal(found.classifier.bias, CLASSIFIER.bias)
    assert (found.classnames, found.words.template) == (["a", "b é"], "a {}.")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), demo_clip.model.encode_image(images))


def test_a_classifier_of_another_model_is_refused_and_nothing_is_left(tmp_path, head):
    with pytest.raises(UserError, match=r"c\.safetensors"):
        assemble_model(head, PretrainedClip("ViT-B-32", "openai"), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()
