"""Shares, differences and guarantees by a person's answers about images drawn at random.

`share_right` is of a finite population, in which other images were chosen to be asked about.
`share` and `difference` are of a stratified sample. Their variance is that of sampling without
replacement (Cochran, Sampling Techniques, 1977, 5.6). A small stratum whose few answers are all
alike would count as known. So ADDED answers of the largest possible variance are added to each
stratum. Guarantees are about N other labels.

Letters: N labels, H strata, n or m answers.
"""

import math
from dataclasses import dataclass

import numpy as np

from latteclip.labels.votes import Bools, Floats, Ints

MIN_ANSWERS = 10  # about images drawn at random, for an interval that is stated
ALPHA = 0.05  # probability that a guarantee or an interval fails
MANY = 10**6  # images for each of a sample, of which new ones will be
ADDED = 2  # answers, to the variance of each stratum


@dataclass(frozen=True)
class Interval:
    """A share, or the difference of two, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # answers of a person that it rests on; 0: it rests on votes and images

    def words(self, unit: str = " %") -> str:
        """Return the value and the ends in percent."""
        value, low, high = (
            100 * share for share in (self.value, self.low, self.high)
        )
        return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"

    @property
    def is_decided(self) -> bool:
        """Whether the interval of a difference leaves out zero, or is one point."""
        return self.low == self.high or not self.low <= 0 <= self.high


def share_right(
    population: int,
    drawn: int,
    drawn_right: int,
    *,
    right: int = 0,
    wrong: int = 0,
    unsure: int = 0,
    drawn_unsure: int = 0,
    corrected: int = 0,
) -> Interval:
    """Return the share of right labels of a population, which holds at every moment.

    `right`, `wrong` and `unsure` count the images that were chosen to be asked about: the person
    knew the class, or that it is none of them, or could not tell. Images were `drawn` at random
    from all others, whose share of right labels is estimated. Of those drawn whose label was
    wrong, answers `corrected` some. Of further ones that were drawn, `drawn_unsure`, the person
    could not tell the class. What the person could not tell counts as wrong for the lower end, and
    as right for the upper one.
    """
    others = population - right - wrong - unsure
    asked = drawn + drawn_unsure
    low, _ = confidence_sequence(drawn_right, asked, others)
    _, high = confidence_sequence(drawn_right + drawn_unsure, asked, others)
    known = right + corrected
    return Interval(
        value=(known + drawn_right / drawn * (others + unsure)) / population,
        low=(known + low * others) / population,
        high=min(1.0, (known + high * others + unsure) / population),
        n=drawn,
    )


def confidence_sequence(
    right: int, answers: int, population: int
) -> tuple[float, float]:
    """Return an interval for the share of right labels that holds at every moment.

    The prior-posterior-ratio martingale for draws without replacement, with a uniform prior, gives
    intervals of which all hold at once with 95 % probability (Waudby-Smith and Ramdas, NeurIPS
    2020, arXiv 2006.04347).
    """
    from scipy.stats import hypergeom  # it takes half a second to import

    wrong = answers - right
    # Every possible number of right labels in the population.
    theta = np.arange(right, population - wrong + 1)
    log_likelihood = hypergeom.logpmf(right, population, theta, answers)
    log_posterior = log_likelihood - np.logaddexp.reduce(log_likelihood)
    lowest = np.log(ALPHA / (population + 1))
    inside = theta[log_posterior > lowest]
    return float(inside[0] / population), float(inside[-1] / population)


def stratified_mean(
    values: Floats, strata: Ints, sizes: Ints, largest: float
) -> tuple[float, float, float]:
    """Estimate the mean over a population from values [n] of its strata [n].

    Returned are the mean, its variance, and the standard errors that an interval reaches to each
    side. Some images of each stratum were drawn at random. A stratum without answers counts as the
    mean of all others and as one answer. `sizes` [H] are those of the population, and `largest` is
    the variance that values could have at most.
    """
    from scipy.special import stdtrit  # it takes a third of a second to import

    n_strata = len(sizes)
    n = np.bincount(strata, minlength=n_strata)
    n_counted = np.maximum(n, 1)
    is_answered = n > 0
    shares = sizes / sizes.sum()
    sums = np.bincount(strata, weights=values, minlength=n_strata)
    weights = sizes / n_counted
    overall = np.average(values, weights=weights[strata])
    means = np.where(is_answered, sums / n_counted, overall)
    deviations = (values - means[strata]) ** 2
    squares = np.bincount(strata, weights=deviations, minlength=n_strata)
    free = np.maximum(n - 1, 0)
    variances = (squares + ADDED * largest) / (free + ADDED)
    # Of a stratum that is asked about as a whole, nothing is left to estimate.
    left = 1 - n / np.maximum(sizes, 1)
    variance = float((shares**2 * variances / n_counted * left).sum())
    freedom = max(1, len(values) - np.count_nonzero(is_answered))
    quantile = float(stdtrit(freedom, 1 - ALPHA / 2))
    return float((shares * means).sum()), variance, quantile


def share(hits: Floats, strata: Ints, sizes: Ints) -> Interval:
    """Estimate the share of a population with a property, 1 or 0 for each answer [n].

    The interval is Wilson's (1927) with the sample's effective size and Student's quantile.
    """
    value, variance, quantile = stratified_mean(hits, strata, sizes, largest=0.25)
    if variance <= 0:
        return Interval(value, value, value, len(hits))
    # Where all or none are hits the variance of a share says nothing: two more answers do.
    n = len(hits)
    typical = (value * n + 1) / (n + 2)
    # The squared quantile over the effective size.
    z2 = quantile**2 * variance / (typical * (1 - typical))
    middle = (value + z2 / 2) / (1 + z2)
    reach = (z2 * (value * (1 - value) + z2 / 4)) ** 0.5 / (1 + z2)
    low = max(0.0, middle - reach)
    high = min(1.0, middle + reach)
    return Interval(value, low, high, n)


def share_of_new(right: int, n: int) -> Interval:
    """Estimate the share of new images that are right, from n images like them."""
    hits = (np.arange(n) < right).astype(float)
    return share(hits, np.zeros(n, np.int_), np.array([MANY]))


def difference(leads: Floats, strata: Ints, sizes: Ints, apart: float) -> Interval:
    """Estimate the difference in accuracy between one classifier and another.

    Where both predict the same there is no difference. So the images on which they differ are a
    population of their own: the share `apart` of all images, `sizes` [H] of them in each stratum.

    `leads` [n] of the asked images among them are 1 where the first is right, -1 where the second
    is, and 0 where none is.
    """
    n = len(leads)
    if not n:
        return Interval(0.0, -apart, apart, n)
    value, variance, quantile = stratified_mean(leads, strata, sizes, largest=1.0)
    reach = quantile * math.sqrt(variance)
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    return Interval(apart * value, apart * low, apart * high, n)


def fewest_answers(share: float) -> int:
    """Return how many answers promise this share of errors if no label among them is wrong."""
    return math.ceil(math.log(ALPHA) / math.log1p(-share))


def pac_threshold(confidence: Floats, wrong: Bools, max_error: float) -> float:
    """Return the confidence from which labels may be taken without a look; inf: none may.

    With 95 % probability, at most `max_error` of ALL labels are wrong and taken, by Clopper and
    Pearson's exact bound. Sets of the surest labels are nested, so that of the largest set needs no
    correction for the search (Candes, Ilyas and Zrnic, arXiv 2506.10908). Confidences [m] are of
    images drawn uniformly, of which some labels are wrong [m].
    """
    from scipy.special import bdtr  # it takes a third of a second to import

    m = len(wrong)
    allowed = np.count_nonzero(bdtr(np.arange(m + 1), m, max_error) <= ALPHA) - 1
    if allowed < 0:
        return math.inf
    errors = np.sort(confidence[wrong])[::-1]
    if allowed >= len(errors):
        return 0.0
    # Labels from the next error on are taken no more.
    return float(np.nextafter(errors[allowed], np.inf))
