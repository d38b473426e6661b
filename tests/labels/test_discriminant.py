import numpy as np
import pytest
import torch
from scipy.special import softmax

from latteclip.labels.discriminant import fit_discriminant
from latteclip.labels.votes import Votes


@pytest.mark.parametrize("length", [0.02, 1.0, 50.0])
def test_probabilities_of_new_images_are_as_sure_as_they_are_right(length):
    """Whatever the length of features is: CLIP's have 1, an encoder's may have another."""
    random = np.random.default_rng(0)
    means = random.normal(size=(5, 16))
    true = random.integers(5, size=6000)
    x = (0.8 * means[true] + random.normal(size=(6000, 16))) * length
    seen = np.arange(6000) < 1000
    labels = Votes.of(true)
    features = torch.from_numpy(x.astype(np.float32))
    weights, bias = fit_discriminant(features, labels, 5, seen)
    shares = softmax(x[~seen] @ weights.T + bias, axis=1)
    right = shares.argmax(axis=1) == true[~seen]
    assert 0.7 < right.mean() < 0.95
    assert shares.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.03)
