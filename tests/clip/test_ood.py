import pytest
import torch
import torch.nn.functional as F

from latteclip.clip.ood import UnknownDetector, load_detector

N, C, D = 11, 3, 5
NAMES = ["a", "b", "c"]


@pytest.fixture
def detector():
    torch.manual_seed(0)
    features, texts = F.normalize(torch.randn(N, D), dim=1), F.normalize(torch.randn(C, D), dim=1)
    described = {"classnames": NAMES, "model": "m"}
    training = torch.ones(N, dtype=torch.bool)
    return UnknownDetector.learn(features, training, texts, 0.2, described)[0]


def test_it_is_read_as_it_was_written(detector, tmp_path):
    detector.save(tmp_path / "unknown.safetensors")
    found = load_detector(tmp_path / "unknown.safetensors", NAMES)
    assert torch.equal(found.texts, detector.texts)
    assert torch.equal(found.mean, detector.mean)
    assert (found.threshold, found.described) == (detector.threshold, detector.described)
