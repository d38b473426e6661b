"""Shares and differences from a stratified sample, with 95 % intervals.

The variance is that of stratified sampling without replacement (Cochran, Sampling Techniques, 1977,
5.6), with Satterthwaite's degrees of freedom (5.4). A small stratum whose few answers are all alike
would count as known. So ADDED answers of the largest possible variance are added to each stratum.

Letters: n answers, H strata.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
LEVEL = 0.95
ADDED = 2  # answers, to the variance of each stratum


class Mean(NamedTuple):
    """The estimated mean over a population, and its variance."""

    value: float
    sampling: float  # variance if the same sample had been drawn with replacement
    known: float  # the part of it that a finite population saves
    quantile: float  # standard errors that an interval reaches to each side

    @property
    def variance(self) -> float:
        return max(0.0, self.sampling - self.known)

    @property
    def reach(self) -> float:
        """Half the width of the interval around the value."""
        return self.quantile * float(np.sqrt(self.variance))


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def stratified_mean(values: Floats, strata: Ints, sizes: Ints, largest: float) -> Mean:
    """Estimate the mean over a population from values [n] of its strata [n].

    Some images of each stratum were drawn at random. A stratum without answers counts as the mean
    of all others and as one answer. `sizes` [H] are those of the population, and `largest` is the
    variance that values could have at most.
    """
    n = np.bincount(strata, minlength=len(sizes))
    shares = sizes / sizes.sum()
    sums = np.bincount(strata, weights=values, minlength=len(sizes))
    overall = np.average(values, weights=(sizes / np.maximum(n, 1))[strata])
    means = np.where(n > 0, sums / np.maximum(n, 1), overall)
    squares = np.bincount(strata, weights=(values - means[strata]) ** 2, minlength=len(sizes))
    free = np.maximum(n - 1, 0)
    variances = (squares + ADDED * largest) / (free + ADDED)
    sampling = shares**2 * variances / np.maximum(n, 1)
    known = np.where(n > 0, shares**2 * variances / np.maximum(sizes, 1), 0)
    left = sampling - known
    # The added variance is no estimate: it has no error of its own.
    spread = float((left**2 * free / (free + ADDED) ** 2).sum())
    most = float(max(1, len(values) - int(np.count_nonzero(n))))
    freedom = min(most, float(left.sum()) ** 2 / spread) if spread > 0 else most
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    return Mean(float((shares * means).sum()), float(sampling.sum()), float(known.sum()), quantile)


def share(hits: Floats, strata: Ints, sizes: Ints) -> Interval:
    """Estimate the share of a population with a property, 1 or 0 for each answer [n].

    The interval is Wilson's (1927) with the sample's effective size and Student's quantile.
    """
    mean = stratified_mean(hits, strata, sizes, largest=0.25)
    if mean.variance <= 0:
        return Interval(mean.value, mean.value, mean.value)
    # Where all or none are hits the variance of a share says nothing: two more answers do.
    typical = (mean.value * len(hits) + 1) / (len(hits) + 2)
    z2 = mean.quantile**2 * mean.variance / (typical * (1 - typical))  # over the effective size
    middle = (mean.value + z2 / 2) / (1 + z2)
    reach = (z2 * (mean.value * (1 - mean.value) + z2 / 4)) ** 0.5 / (1 + z2)
    return Interval(mean.value, max(0.0, middle - reach), min(1.0, middle + reach))


def difference(
    hits: Floats, others: Floats, drawn: Ints, strata: Ints, differ: Ints
) -> tuple[Interval, int | None]:
    """Estimate the difference in accuracy between one classifier and another.

    Where both predict the same there is no difference. So the images on which they differ are a
    population of their own, whose part in each stratum is known. Returns also how many more answers
    would let the interval leave out zero: 0 if it does, or None if this is unknown.

    `hits` and `others` [n] are 1 where the first and the second are right about the images `drawn`
    [n]. `differ` [N] is 1 where their predictions differ.
    """
    rows, apart = np.flatnonzero(differ[drawn]), float(differ.mean())
    if not apart:
        return Interval(0.0, 0.0, 0.0), 0
    if not len(rows):
        return Interval(0.0, -apart, apart), None
    sizes = np.bincount(strata[differ == 1], minlength=strata.max() + 1)
    mean = stratified_mean((hits - others)[rows], strata[drawn[rows]], sizes, largest=1.0)
    low, high = (max(-1.0, min(1.0, mean.value + sign * mean.reach)) for sign in (-1, 1))
    found = Interval(apart * mean.value, apart * low, apart * high)
    return found, _more(mean, len(drawn), len(strata))


def _more(mean: Mean, n: int, images: int) -> int | None:
    if abs(mean.value) > mean.reach or n >= images:
        return 0
    if mean.value == 0:
        return None
    times = mean.sampling / ((mean.value / mean.quantile) ** 2 + mean.known)
    return int(min(images - n, max(1, np.ceil((times - 1) * n))))
