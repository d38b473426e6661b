import numpy as np
import pytest

from latteclip.audit import sampling


def random_strata(n):
    rng = np.random.default_rng(0)
    return sampling.stratify(rng.random((3, n)).round())


@pytest.mark.parametrize("n", [50, 250])
def test_every_beginning_has_each_stratum_at_its_rate(n):
    strata = random_strata(400)
    order = np.argsort(sampling.sampling_order(strata, np.random.default_rng(1)))
    drawn = np.bincount(strata[order[:n]], minlength=2)
    sizes = np.bincount(strata, minlength=2)
    expected = sizes * sampling.RATES / (sizes @ sampling.RATES) * n
    assert (np.abs(drawn - expected) <= 1.01).all()


def test_images_of_a_stratum_are_drawn_with_one_probability():
    """Of many drawings, how often each image is among the first n."""
    strata = random_strata(60)
    rng = np.random.default_rng(0)
    n, drawings = 20, 4000
    often = np.zeros(60)
    for _ in range(drawings):
        often += sampling.sampling_order(strata, rng) < n
    for h in np.unique(strata):
        shares = often[strata == h] / drawings
        error = np.sqrt(shares.mean() * (1 - shares.mean()) / drawings)
        assert np.abs(shares - shares.mean()).max() < 5 * error
