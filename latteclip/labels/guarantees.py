"""What a person's answers about m images drawn at random guarantee about N other labels."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, gammaln

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
MIN_ANSWERS = 10  # about images drawn at random, for an interval that is stated
ALPHA = 0.05  # probability that a guarantee or an interval fails
MAX_ANSWERS = 2**62
TIE_SEED = 0  # seed of the random order of equal confidences


@dataclass(frozen=True)
class Interval:
    """A share with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # answers of a person that it rests on; 0: it rests on votes and images

    @property
    def words(self) -> str:
        """Return the share and its interval in words."""
        value, low, high = (100 * share for share in (self.value, self.low, self.high))
        return f"{value:.1f} % right, 95 % interval {low:.1f} to {high:.1f}"


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


def confidence_sequence(right: int, answers: int, population: int) -> tuple[float, float]:
    """Return an interval for the share of right labels that holds at every moment.

    The prior-posterior-ratio martingale for draws without replacement, with a uniform prior, gives
    intervals of which all hold at once with 95 % probability (Waudby-Smith and Ramdas, NeurIPS
    2020, arXiv 2006.04347).
    """
    wrong = answers - right
    # Every possible number of right labels in the population.
    theta = np.arange(right, population - wrong + 1)
    choices_of_right = _log_choose(theta, right)
    choices_of_wrong = _log_choose(population - theta, wrong)
    log_likelihood = choices_of_right + choices_of_wrong
    log_posterior = log_likelihood - np.logaddexp.reduce(log_likelihood)
    lowest = np.log(ALPHA / (population + 1))
    inside = theta[log_posterior > lowest]
    return float(inside[0] / population), float(inside[-1] / population)


def _log_choose(n: npt.NDArray[np.int_], k: int) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def upper_bound(wrong: int, answers: int, alpha: float = ALPHA) -> float:
    """Return the upper end of Clopper and Pearson's exact one-sided interval for a share."""
    if wrong >= answers:
        return 1.0
    return float(betaincinv(wrong + 1, answers - wrong, 1 - alpha))


def fewest_answers(share: float, *, on_average: bool = False) -> int:
    """Return how many answers promise this share of errors if no label among them is wrong."""
    if on_average:
        return int(min(1 / share, MAX_ANSWERS))
    return math.ceil(min(math.log(ALPHA) / math.log1p(-share), MAX_ANSWERS))


def smallest_share(answers: int, *, on_average: bool = False) -> float:
    """Return the smallest share of errors that so many answers can promise, to two digits."""
    share = 1 / answers if on_average else 1 - ALPHA ** (1 / answers)
    step = 10.0 ** (math.floor(math.log10(share)) - 1)
    return math.ceil(share / step) * step


def pac_threshold(confidence: Floats, wrong: Bools, max_error: float) -> float:
    """Return the confidence from which labels may be taken without a look; inf: none may.

    With 95 % probability, at most `max_error` of ALL labels are wrong and taken. Sets of the surest
    labels are nested, so the exact bound of the largest set needs no correction for the search
    (Candes, Ilyas and Zrnic, arXiv 2506.10908). Confidences [m] are of images drawn uniformly, of
    which some labels are wrong [m].
    """
    if upper_bound(0, len(wrong)) > max_error:
        return float("inf")
    answers = len(wrong)
    allowed = max(n for n in range(answers + 1) if upper_bound(n, answers) <= max_error)
    errors = np.sort(confidence[wrong])[::-1]
    if allowed >= len(errors):
        return 0.0
    # Labels from the next error on are taken no more.
    return float(np.nextafter(errors[allowed], np.inf))


def conformal_accepted(
    confidence: Floats, wrong: Bools, others: Floats, false_discovery: float
) -> Bools:
    """Return which of the others [N] may be used: on average, at most a share of them is wrong.

    Each label has a conformal p-value for the hypothesis that it is wrong, and Benjamini and
    Hochberg's procedure selects (arXiv 2510.14581). For the first two see `pac_threshold`.
    """
    from scipy.stats import false_discovery_control  # it takes half a second to import

    rng = np.random.default_rng(TIE_SEED)
    # Complex numbers are ordered by the first part, and then by the second.
    drawn, rest = (part + 1j * rng.random(len(part)) for part in (confidence, others))
    errors = np.sort(drawn[wrong])
    surer = len(errors) - np.searchsorted(errors, rest)  # wrong ones at least as sure
    p_values = (1 + surer) / (1 + len(wrong))
    return np.asarray(false_discovery_control(p_values) <= false_discovery)
