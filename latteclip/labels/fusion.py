"""What the captions of images vote for, fused with zero-shot scores: ours, beyond the paper.

A caption is scored like an image, by the cosines of its text feature with the class embeddings W0;
its softmax is its vote q over the classes. How far votes can be trusted is learned from how they
agree with the zero-shot scores, without any label (in the spirit of Dawid and Skene 1979, where one
of two raters gives probabilities):

    p(c | image)   = softmax_c(log zero_shot(c) / temperature + bias_c)
    P(vote k | c)  = rate_c [k = c] + (1 - rate_c) chance_k
    fused(c)      ~= p(c | image) * prod_k P(vote k | c) ^ q_k

In words: the caption of an image of class c names c with probability rate_c, else any class k with
probability chance_k, whatever the image shows. Temperature, biases, rates and chances maximise the
likelihood of all votes under normal priors, which allow hardly any correction where votes are few.

The tables of N rows may be float32; they are computed with in float64, one part at a time.

Letters: N training images, C classes, G groups, M memberships of images in groups.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

DEVIATION = 0.5  # of every correction, in logits: the priors
SMOOTHING = 1.0  # votes of the overall distribution added to each counted one
ROWS = 4096  # images that are computed with at once
STEPS = 200  # of L-BFGS at most; it needs about 30
HALVINGS = 50  # of the interval in which a group's rate is searched


@dataclass(frozen=True)
class VoteModel:
    """What the votes of captions say about classes; everything is float64, arguments included."""

    log_temperature: torch.Tensor  # scalar: of the zero-shot scores
    biases: torch.Tensor  # [C] added to the zero-shot scores, logits
    rate_logits: torch.Tensor  # [C] log-odds that a caption names the class of its image
    log_chances: torch.Tensor  # [C] log-probabilities of what it names otherwise

    def log_prior(self, zero_shot: torch.Tensor) -> torch.Tensor:
        """[N, C]: log p(c | image) of zero-shot log-probabilities [N, C]."""
        scores = zero_shot * (-self.log_temperature).exp() + self.biases
        return scores.log_softmax(dim=1)

    def log_likelihood(self, zero_shot: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        """Sum over the images of sum_k q_k log sum_c p(c | image) P(vote k | c).

        Args:
            zero_shot: [N, C] log-probabilities.
            votes: [N, C] rows of sum 1, or of 0 for a caption that does not vote.
        """
        prior = self.log_prior(zero_shot)
        named = prior + F.logsigmoid(self.rate_logits)  # [N, C]
        else_named = (prior + F.logsigmoid(-self.rate_logits)).logsumexp(1, keepdim=True)  # [N, 1]
        return (votes * torch.logaddexp(named, else_named + self.log_chances)).sum()

    def log_posterior(self, zero_shot: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        """[N, C]: log fused(c), normalised; arguments as of `log_likelihood`.

        log P(vote k | c) = log(1 - rate_c) + log chance_k + [k = c] weight_c, so that the votes add
        to the log-probability of a class, and the chances are the same for all.
        """
        scores = (
            self.log_prior(zero_shot)
            + votes.sum(dim=1, keepdim=True) * F.logsigmoid(-self.rate_logits)
            + votes * self.weights()
        )
        return scores.log_softmax(dim=1)

    def weights(self) -> torch.Tensor:
        """[C]: log(1 + rate / ((1 - rate) chance)), what a vote for a class adds to its logit."""
        return F.softplus(self.rate_logits - self.log_chances)


@dataclass(frozen=True)
class Fusion:
    """Fused labels and how they came about."""

    log_posterior: torch.Tensor  # [N, C]
    model: VoteModel | None  # None where the captions say nothing
    evidence: float  # of the captions, nats
    needed: float  # the evidence above which the captions count
    group_rate: float  # 0 where the groups add nothing
    group_evidence: float


def fuse(
    zero_shot: torch.Tensor, votes: torch.Tensor, group_votes: torch.Tensor, labels: torch.Tensor
) -> Fusion:
    """Fuse zero-shot scores with the votes of the captions, then with those of the groups.

    Groups were drawn by zero-shot label, so most of what they say merely repeats it. Their vote
    counts as far as it tells images of one zero-shot label apart: its chances are those of the
    label, and `group_rate` is how often it names the fused class beyond them.

    Args:
        zero_shot: [N, C] log-probabilities.
        votes: [N, C] votes of the captions, rows of sum 1 or 0.
        group_votes: [N, C] mean votes of the groups of each image, rows of sum 1 or 0.
        labels: [N] zero-shot labels, from which the groups were drawn.
    """
    model, evidence, needed = fit(zero_shot, votes)
    posterior = zero_shot if model is None else _by_parts(model.log_posterior, zero_shot, votes)
    chances = chances_of_labels(group_votes, labels)  # [C, C]
    rate, group_evidence = fit_rate(posterior, group_votes, labels, chances)
    if group_evidence <= _needed(group_votes) / 2:
        rate = 0.0
    weights = torch.log1p(rate / ((1 - rate) * chances))  # [C, C]
    posterior = _by_parts(
        lambda own, groups, of: (own + groups * weights[of]).log_softmax(dim=1),
        posterior,
        group_votes,
        labels,
    )
    return Fusion(posterior, model, evidence, needed, rate, group_evidence)


def log_probabilities(scores: torch.Tensor) -> torch.Tensor:
    """Log-softmax of scores [N, C], computed in place."""
    for part in scores.split(ROWS):
        part.copy_(part.double().log_softmax(dim=1))
    return scores


def _by_parts(compute: Callable[..., torch.Tensor], *tables: torch.Tensor) -> torch.Tensor:
    """`compute` of ROWS rows at a time, in the precision of the first table."""
    result = torch.empty_like(tables[0])
    for out, *parts in zip(result.split(ROWS), *_parts(*tables), strict=True):
        out.copy_(compute(*parts))
    return result


def _parts(*tables: torch.Tensor) -> Iterator[Iterator[torch.Tensor]]:
    """ROWS rows at a time of each table, in float64 if it holds numbers with a fraction."""
    return (
        (part.double() if part.is_floating_point() else part for part in table.split(ROWS))
        for table in tables
    )


def fit(zero_shot: torch.Tensor, votes: torch.Tensor) -> tuple[VoteModel | None, float, float]:
    """The likeliest model of the votes, its evidence, and the evidence needed.

    The evidence is what a temperature and one common rate gain in log-likelihood over votes that
    are drawn from their overall distribution whatever the image shows. The Bayesian information
    criterion asks the log of the number of votes of two parameters; where the evidence is less,
    there is no model. Classes get biases, rates and chances of their own only after that: with
    them it would fit votes that name the classes wrongly but consistently.

    Args:
        zero_shot: [N, C] log-probabilities.
        votes: [N, C] rows of sum 1 or 0.
    """
    totals = votes.sum(dim=0, dtype=torch.float64)  # [C]
    overall = _distribution(totals, _uniform(totals)).log()  # [C]
    _, density = _likeliest(zero_shot, votes, overall, own=False)
    evidence, needed = density - (totals * overall).sum().item(), _needed(votes)
    if not evidence > needed:
        return None, evidence, needed
    return _likeliest(zero_shot, votes, overall, own=True)[0], evidence, needed


def _likeliest(
    zero_shot: torch.Tensor, votes: torch.Tensor, overall: torch.Tensor, *, own: bool
) -> tuple[VoteModel, float]:
    """The model of the largest log posterior density, and this density up to constants.

    Args:
        zero_shot: [N, C].
        votes: [N, C].
        overall: [C] log of the distribution of all votes.
        own: whether classes have corrections of their own.
    """
    n_classes = len(overall)
    free = overall.new_zeros(2 + 3 * n_classes if own else 2, requires_grad=True)
    fixed = overall.new_zeros(2 + 3 * n_classes - len(free))

    def model(parameters: torch.Tensor) -> VoteModel:
        biases, rates, chances = torch.cat([parameters, fixed])[2:].chunk(3)
        log_chances = (overall + chances).log_softmax(dim=0)
        return VoteModel(parameters[0], biases, parameters[1] + rates, log_chances)

    def log_density() -> Iterator[torch.Tensor]:
        """The terms of the log posterior density, each with a graph of its own."""
        for part in zip(*_parts(zero_shot, votes), strict=True):
            yield model(free).log_likelihood(*part)
        corrections = torch.cat([free[:1], free[2:]])  # the common rate has no prior
        yield -corrections.square().sum() / (2 * DEVIATION**2)

    optimiser = torch.optim.LBFGS(
        [free],
        max_iter=STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimiser.zero_grad()
        total = 0.0
        for term in log_density():
            (-term / len(votes)).backward()
            total -= term.item() / len(votes)
        return total

    optimiser.step(loss)
    with torch.no_grad():
        return model(free.detach()), sum(term.item() for term in log_density())


def _needed(votes: torch.Tensor) -> float:
    """The log of the number of rows that vote; above 0 even for one row or none."""
    return math.log(max(2, int((votes.sum(dim=1) > 0).sum())))


def _uniform(totals: torch.Tensor) -> torch.Tensor:
    return torch.full_like(totals, 1 / len(totals))


def _distribution(counts: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Counts [..., C] as probabilities, with `SMOOTHING` votes of the distribution `prior` [C]."""
    smoothed = counts + SMOOTHING * prior
    return smoothed / smoothed.sum(dim=-1, keepdim=True)


def mean_group_votes(
    votes: torch.Tensor, groups: torch.Tensor, images: torch.Tensor, n_images: int
) -> torch.Tensor:
    """[N, C]: the mean vote of the groups that each image is in; 0 where none of them votes.

    Args:
        votes: [G, C] rows of sum 1, or of 0 for a group that does not vote.
        groups: [M] the row of the group of each membership.
        images: [M] its image.
    """
    total = votes.new_zeros(n_images, votes.shape[1])
    for group, image in zip(groups.split(ROWS), images.split(ROWS), strict=True):
        total.index_add_(0, image, votes[group])
    return total.div_(total.sum(dim=1, keepdim=True).clamp(min=1))


def chances_of_labels(votes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[C, C]: the mean vote of the images of each zero-shot label, all its entries positive.

    Args:
        votes: [N, C] rows of sum 1 or 0.
        labels: [N].
    """
    n_classes = votes.shape[1]
    totals = torch.zeros(n_classes, n_classes, dtype=torch.float64)
    for label, part in zip(*_parts(labels, votes), strict=True):
        totals.index_add_(0, label, part)
    counts = totals.sum(dim=0)  # [C]
    return _distribution(totals, _distribution(counts, _uniform(counts)))


def fit_rate(
    posterior: torch.Tensor, votes: torch.Tensor, labels: torch.Tensor, chances: torch.Tensor
) -> tuple[float, float]:
    """The rate r below 1 that maximises sum q log(r posterior + (1 - r) chances), a concave sum.

    Args:
        posterior: [N, C] log-probabilities.
        votes: [N, C], q: rows of sum 1 or 0.
        labels: [N] rows of `chances`.
        chances: [C, C] probabilities of each vote, were nothing but its label known of the image.

    Returns:
        The rate, and what it gains over the rate 0, in nats.
    """
    ratios = _by_parts(lambda own, of: own.exp() / chances[of] - 1, posterior, labels)  # [N, C]

    def sum_of(term: Callable[[torch.Tensor], torch.Tensor]) -> float:
        parts = zip(*_parts(votes, ratios), strict=True)
        return sum(float((part * term(ratio)).sum()) for part, ratio in parts)

    def slope(rate: float) -> float:
        return sum_of(lambda ratio: ratio / (1 + rate * ratio))

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return low, sum_of(lambda ratio: torch.log1p(low * ratio))
