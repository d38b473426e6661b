import numpy as np
import pytest
from scipy.special import expit, logit

from latteclip.deploy.label_table import FOLDS, calibrate, expected_calibration_error


@pytest.fixture
def answers():
    """Probabilities that are too sure, and whether their labels are right."""
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.05, 0.999, 4000)
    truth = expit(0.5 * logit(probabilities) - 1)
    return probabilities, (rng.random(4000) < truth).astype(float), truth


def test_the_correction_is_found(answers):
    probabilities, right, truth = answers
    found = calibrate(probabilities, right, np.ones(4000))
    np.testing.assert_allclose(found(probabilities), truth, atol=0.05)
    assert found.error < found.error_before / 3
    assert found.answers == 4000


def test_an_answer_counts_for_the_images_that_it_stands_for(answers):
    probabilities, right, _ = answers
    wrong = np.zeros_like(right)
    both = np.stack([right, wrong], axis=1).ravel(), np.tile([1.0, 0.0], 4000)
    doubled = calibrate(np.repeat(probabilities, 2), *both)
    found = calibrate(probabilities, right, np.ones(4000))
    np.testing.assert_allclose(doubled(probabilities), found(probabilities), atol=0.01)


def test_no_answer_has_a_part_in_the_fit_that_it_judges(answers):
    probabilities, right, _ = (part[:103] for part in answers)
    weights = np.linspace(1, 3, 103)
    folds, apart = np.arange(103) % FOLDS, np.empty(103)
    for fold in range(FOLDS):
        rest = folds != fold
        found = calibrate(probabilities[rest], right[rest], weights[rest] / weights.mean())
        apart[~rest] = found(probabilities[~rest])
    wanted = expected_calibration_error(apart, right, weights)
    assert calibrate(probabilities, right, weights).error == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_that_all_say_the_same_give_probabilities(right):
    found = calibrate(np.linspace(0, 1, 50), np.full(50, right), np.ones(50))
    corrected = found(np.array([0.0, 0.5, 1.0]))
    assert np.isfinite(corrected).all()
    assert ((corrected >= 0) & (corrected <= 1)).all()


def test_the_error_is_the_mean_gap_of_the_bins():
    probabilities = np.array([0.15, 0.15, 0.95, 1.0])
    right = np.array([0.0, 1.0, 1.0, 0.0])
    weights = np.array([1.0, 1.0, 2.0, 1.0])
    gaps = abs(1 - 0.3) + abs(2 - (2 * 0.95 + 1))
    assert expected_calibration_error(probabilities, right, weights) == pytest.approx(
        gaps / 5
    )
