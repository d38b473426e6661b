import numpy as np
import pytest

from latteclip.audit import sampling

SURE, NOT_SURE, DISAGREE = range(3)
N = 400


def random_strata(n=N, k=3, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 5, n)
    said = [first] + [
        np.where(rng.random(n) < 0.6, first, (first + j) % 5) for j in range(1, k)
    ]
    return sampling.stratify(np.stack(said, axis=1), rng.random(n))


def test_strata_say_whether_models_disagree_and_how_sure_clip_is():
    n = 40
    said = np.zeros((3 * n, 3), dtype=int)
    said[2 * n :, 1] = 1
    confidence = np.r_[np.full(n, 0.9), np.full(n, 0.2), np.full(n, 0.5)]
    expected = np.repeat([SURE, NOT_SURE, DISAGREE], n)
    assert (sampling.stratify(said, confidence) == expected).all()


@pytest.mark.parametrize("n", [50, 250])
def test_every_beginning_has_each_stratum_at_its_rate(n):
    strata = random_strata()
    order = np.argsort(sampling.sampling_order(strata, np.random.default_rng(1)))
    drawn = np.bincount(strata[order[:n]], minlength=3)
    sizes = np.bincount(strata, minlength=3)
    expected = sizes * sampling.RATES / (sizes @ sampling.RATES) * n
    free = drawn < sizes
    assert (np.abs(drawn - expected) <= 1.01)[free].all() or (drawn == sizes).any()


def test_images_of_a_stratum_are_drawn_with_one_probability():
    """Of many drawings, how often each image is among the first n."""
    strata = random_strata(n=60)
    rng = np.random.default_rng(0)
    n, drawings = 20, 4000
    often = np.zeros(60)
    for _ in range(drawings):
        often += sampling.sampling_order(strata, rng) < n
    for h in np.unique(strata):
        shares = often[strata == h] / drawings
        error = np.sqrt(shares.mean() * (1 - shares.mean()) / drawings)
        assert np.abs(shares - shares.mean()).max() < 5 * error
