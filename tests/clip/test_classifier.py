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


def test_a_file_without_a_bias_has_one_of_zeros(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"classifier": torch.ones(C, D)}, path, {"classifier": "{}"})
    assert torch.equal(load_classifier(path)[0].bias, torch.zeros(C))


def test_it_is_stored_as_float32(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(C, D, dtype=torch.float64))
    save_classifier(tmp_path / "c.safetensors", Classifier.of(parameter, parameter[:, 0]), {})
    loaded, _ = load_classifier(tmp_path / "c.safetensors")
    assert {loaded.weights.dtype, loaded.bias.dtype} == {torch.float32}


def test_equal_classifiers_are_equal_files(tmp_path):
    contents = set()
    for number in range(8):
        save_classifier(tmp_path / str(number), Classifier.of(torch.ones(C, D)), DESCRIBED)
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 1


def test_a_classifier_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, Classifier.of(torch.ones(C, D)), DESCRIBED)
    with pytest.raises(TypeError):
        save_classifier(path, Classifier.of(torch.zeros(C, D)), {"classnames": object()})
    assert torch.equal(load_classifier(path)[0].weights, torch.ones(C, D))
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; run the stage"):
        load_classifier(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no safetensors"),
        lambda path: save_file({"classifier": torch.ones(C, D)}, path),
        lambda path: save_file({"classifier": torch.ones(C, D)}, path, {"format": "pt"}),
        lambda path: save_file({"weight": torch.ones(C, D)}, path, {"classifier": "{}"}),
        lambda path: save_file({"classifier": torch.ones(C, D)}, path, {"classifier": "{"}),
        lambda path: save_file({"classifier": torch.ones(C, D).int()}, path, {"classifier": "{}"}),
    ],
    ids=["other bytes", "no metadata", "other metadata", "other tensor", "no JSON", "integers"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, write):
    path = tmp_path / "c.safetensors"
    write(path)
    with pytest.raises(UserError, match="is not a classifier"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("tensors", "described", "wrong"),
    [
        ({"classifier": torch.ones(C)}, {}, r"a matrix of shape \[5\] with a bias"),
        (
            {"classifier": torch.ones(C, D), "classifier_bias": torch.ones(D)},
            {},
            r"a matrix of shape \[5, 3\] with a bias of shape \[3\]",
        ),
        (
            {"classifier": torch.ones(C, D), "classifier_bias": torch.ones(C, 1)},
            {},
            r"a matrix of shape \[5, 3\] with a bias of shape \[5, 1\]",
        ),
        ({"classifier": torch.full((C, D), torch.nan)}, {}, "numbers that are not finite"),
        (
            {"classifier": torch.ones(C, D), "classifier_bias": torch.full((C,), -torch.inf)},
            {},
            "numbers that are not finite",
        ),
        ({"classifier": torch.ones(C, D)}, {"classnames": ["a"]}, "5 rows for 1 class names"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_cannot_classify_are_refused_in_one_sentence(
    tmp_path, tensors, described, wrong
):
    path = tmp_path / "c.safetensors"
    save_file(tensors, path, {"classifier": json.dumps(described)})
    with pytest.raises(UserError, match=rf"c\.safetensors holds {wrong}.*; delete it and rerun"):
        load_classifier(path)
