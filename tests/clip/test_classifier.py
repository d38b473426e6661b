import json

import pytest
import torch
from safetensors.torch import save_file

from latteclip.clip.classifier import Classifier, load_classifier, save_classifier
from latteclip.core.errors import UserError

C, D = 5, 3
DESCRIBED = {"classnames": ["a", "é", "c", "d", "e"], "template": "{}.", "logit_scale": 12.5}


def test_a_classifier_and_its_description_come_back(tmp_path):
    weights, bias = torch.randn(D, C).T, torch.randn(C)  # not contiguous
    save_classifier(tmp_path / "c.safetensors", Classifier.of(weights, bias), DESCRIBED)
    loaded, described = load_classifier(tmp_path / "c.safetensors")
    assert torch.equal(loaded.weights, weights)
    assert torch.equal(loaded.bias, bias)
    assert described == DESCRIBED


def test_scores_are_products_with_the_rows_and_the_bias():
    classifier = Classifier.of(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, -1.0]))
    features = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    torch.testing.assert_close(classifier.scores(features), torch.tensor([[1.1, 0.6], [1.5, -1.0]]))


def test_a_classifier_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, Classifier.of(torch.ones(C, D)), DESCRIBED)
    with pytest.raises(TypeError):
        save_classifier(path, Classifier.of(torch.zeros(C, D)), {"classnames": object()})
    assert torch.equal(load_classifier(path)[0].weights, torch.ones(C, D))
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no safetensors"),
        lambda path: save_file({"weight": torch.ones(C, D)}, path, {"classifier": "{}"}),
        lambda path: save_file({"classifier": torch.ones(C, D)}, path, {"classifier": "{"}),
    ],
    ids=["other bytes", "other tensor", "no JSON"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, write):
    path = tmp_path / "c.safetensors"
    write(path)
    with pytest.raises(UserError, match=r"c\.safetensors"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("tensors", "described", "wrong"),
    [
        ({"classifier": torch.ones(C, D), "classifier_bias": torch.ones(D)}, {}, r"\[3\]"),
        ({"classifier": torch.full((C, D), torch.nan)}, {}, "finite"),
        ({"classifier": torch.ones(C, D)}, {"classnames": ["a"]}, "5 rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_cannot_classify_are_refused_in_one_sentence(
    tmp_path, tensors, described, wrong
):
    path = tmp_path / "c.safetensors"
    save_file(tensors, path, {"classifier": json.dumps(described)})
    with pytest.raises(UserError, match=rf"c\.safetensors .*{wrong}"):
        load_classifier(path)
