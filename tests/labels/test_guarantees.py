import numpy as np
import pytest
from scipy import stats

from latteclip.labels import guarantees
from latteclip.labels.guarantees import (
    fewest_answers,
    pac_threshold,
    share_right,
)

N = 2000


def world(seed):
    """Confidences and errors of N labels: the surer, the more often right."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 2, N).round(2)  # with ties
    return confidence, rng.random(N) > confidence, rng


def test_a_share_with_taught_drawn_and_unasked_parts_holds_at_all_moments():
    """Labels of the images that teach are wrong more often, and so are those of unclear images."""
    fails = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        taught = np.arange(400) < 60
        is_right = rng.random(400) < np.where(taught, 0.4, 0.8)
        is_clear = rng.random(400) < np.where(is_right, 1, 0.7)
        clear_taught = is_right[taught & is_clear]
        order = rng.permutation(np.flatnonzero(~taught))
        for n in (5, 10, 20, 40, 80, 160, 340):
            drawn = order[:n]
            hits = is_right[drawn] & is_clear[drawn]
            found = share_right(
                400,
                int(is_clear[drawn].sum()),
                int(hits.sum()),
                unsure=int((~is_clear)[taught].sum()),
                drawn_unsure=int((~is_clear)[drawn].sum()),
                right=int(clear_taught.sum()),
                wrong=int((~clear_taught).sum()),
            )
            if not found.low <= is_right.mean() <= found.high:
                fails += 1
                break
    assert fails / 200 <= 0.05


def test_the_exact_bound_is_scipys():
    """Of 60 labels the three least certain are wrong: as many as the bound allows, or one more."""
    bound = stats.binomtest(3, 60, alternative="less").proportion_ci(0.95).high
    confidence, wrong = np.linspace(0, 1, 60), np.arange(60) < 3
    assert pac_threshold(confidence, wrong, bound + 1e-6) == 0
    assert 0 < pac_threshold(confidence, wrong, bound - 1e-6) <= confidence[1]


@pytest.mark.parametrize(("max_error", "fewest"), [(0.05, 59), (0.1, 29), (0.2, 14)])
def test_so_many_answers_can_promise_an_error_at_all(max_error, fewest):
    assert fewest_answers(max_error) == fewest
    for m, threshold in ((fewest - 1, np.inf), (fewest, 0.0)):
        assert pac_threshold(np.ones(m), np.zeros(m, bool), max_error) == threshold


@pytest.mark.parametrize("max_error", [0.1, 0.2])
def test_at_most_the_promised_share_of_all_labels_is_wrong_and_taken(max_error):
    realised, taken = [], []
    for seed in range(300):
        confidence, wrong, rng = world(seed)
        drawn = rng.choice(N, 100, replace=False)
        threshold = pac_threshold(confidence[drawn], wrong[drawn], max_error)
        accepted = confidence >= threshold
        realised.append((wrong & accepted).mean())
        taken.append(accepted.mean())
    assert (np.array(realised) <= max_error).mean() >= 0.95
    assert np.mean(taken) > 0.1


# --- stratified samples ---------------------------------------------------------------------------

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
    monkeypatch.setattr(guarantees, "ADDED", 0)
    rows = list(REGIONS.values())
    values = np.concatenate([sample(mean, var, n) for _, n, mean, var in rows])
    strata = np.repeat(np.arange(4), [n for _, n, _, _ in rows])
    sizes = np.array([size for size, _, _, _ in rows])
    found = guarantees.stratified_mean(values, strata, sizes, largest=0)
    mean, variance, _ = found
    assert mean * sizes.sum() == pytest.approx(TOTAL, rel=1e-6)
    assert variance**0.5 * sizes.sum() == pytest.approx(ERROR, rel=1e-6)


def test_a_share_is_wilsons_interval_where_answers_are_many():
    hits = np.repeat([1.0, 0.0], [900, 1100])
    found = guarantees.share(hits, np.zeros(2000, int), np.array([10**9]))
    wilson = stats.binomtest(900, 2000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=2e-4)


def test_a_stratum_without_answers_makes_the_interval_wider():
    hits, strata = np.array([1.0, 0.0] * 10), np.zeros(20, int)
    known = guarantees.share(hits, strata, np.array([1000]))
    guessed = guarantees.share(hits, strata, np.array([600, 400]))
    assert guessed.value == known.value
    assert guessed.high - guessed.low > known.high - known.low


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
        found = guarantees.share(hits[rows] * 1.0, strata[rows], np.array([600, 300, 100]))
        holds += found.low <= truth <= found.high
    assert holds / 400 > 0.93
