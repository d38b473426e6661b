import numpy as np
import pytest
from scipy import stats

from latteclip.audit import score

# The farms of the United States in 1992, acres by county (Lohr, Sampling: Design and Analysis,
# example 3.2): counties of each region, counties drawn, and mean and variance of these.
REGIONS = {
    "north central": (1054, 103, 300_504.16, 29_618_183_543),
    "northeast": (220, 21, 97_629.81, 7_647_472_708),
    "south": (1382, 135, 211_315.04, 53_587_487_856),
    "west": (422, 41, 662_295.51, 396_185_950_266),
}
TOTAL, ERROR = 909_736_035, 50_417_248  # as the book gives them


def sample(mean, variance, n):
    """n numbers of this mean and sample variance."""
    values = np.resize([1.0, -1.0], n)
    if n % 2:
        values[-1] = 0
    return mean + values * np.sqrt(variance / values.var(ddof=1))


def test_mean_and_error_are_those_of_a_textbook(monkeypatch):
    monkeypatch.setattr(score, "ADDED", 0)
    rows = list(REGIONS.values())
    values = np.concatenate([sample(mean, var, n) for _, n, mean, var in rows])
    strata = np.repeat(np.arange(4), [n for _, n, _, _ in rows])
    sizes = np.array([size for size, _, _, _ in rows])
    found = score.stratified_mean(values, strata, sizes, largest=0)
    assert found.value * sizes.sum() == pytest.approx(TOTAL, rel=1e-6)
    assert found.variance**0.5 * sizes.sum() == pytest.approx(ERROR, rel=1e-6)


def test_a_share_is_wilsons_interval_where_answers_are_many():
    hits = np.repeat([1.0, 0.0], [900, 1100])
    found = score.share(hits, np.zeros(2000, int), np.array([10**9]))
    wilson = stats.binomtest(900, 2000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=2e-4)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_answers_that_are_all_alike_do_not_count_as_certain(hit):
    found = score.share(np.full(20, hit), np.repeat([0, 1], 10), np.array([500, 500]))
    assert found.value == hit
    assert 0.05 < found.high - found.low < 0.4


def test_a_stratum_without_answers_makes_the_interval_wider():
    hits, strata = np.array([1.0, 0.0] * 10), np.zeros(20, int)
    known = score.share(hits, strata, np.array([1000]))
    guessed = score.share(hits, strata, np.array([600, 400]))
    assert guessed.value == known.value
    assert guessed.high - guessed.low > known.high - known.low


def test_a_difference_counts_only_where_two_say_different_things():
    leads, strata = np.ones(20), np.zeros(20, int)
    found = score.difference(leads, strata, np.array([200]), 0.2)
    assert found.value == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2)  # it cannot be more
    unknown = score.difference(np.zeros(0), np.zeros(0, int), np.array([200]), 0.2)
    assert (unknown.low, unknown.value, unknown.high) == (-0.2, 0, 0.2)


def test_a_difference_on_training_images_stands_for_new_ones():
    """All images are answered. Two models differ on four, and the first leads on three."""
    leads, strata = np.array([1.0, 1, 1, -1]), np.zeros(4, int)
    known = score.difference(leads, strata, np.array([4]), 0.04)
    assert known.low == known.value == known.high
    found = score.difference(leads, strata, np.array([4 * score.MANY]), 0.04)
    assert found.low < 0 < found.value < found.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of a hard case: few images of a stratum, accuracies far apart."""
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1, 2], [600, 300, 100])
    hits = rng.random(1000) < np.array([0.95, 0.6, 0.3])[strata]
    truth, holds = hits.mean(), 0
    for _ in range(400):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(strata == h), 20, False) for h in range(3)]
        )
        found = score.share(hits[rows] * 1.0, strata[rows], np.array([600, 300, 100]))
        holds += found.low <= truth <= found.high
    assert holds / 400 > 0.93
