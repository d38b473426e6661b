"""How right voters are, estimated without labels where that can be known. Not in the paper.

The estimate of a voter is the mean probability that images and the voters of other families give to
its votes. It can be wrong for reasons that no image shows, so an interval has five parts:

- the sampling error of n votes,
- the difference from the estimate by images alone: were both independent, they would agree,
- the difference from the estimate by agreements: were the errors of the voter, of the images and of
  the other voters independent, two of them would agree, above chance, as often as both are right,
- half of the probability that the reference itself is wrong,
- for all voters, by how much images disagree with themselves (`_contradiction`).

An estimate with an interval wider than MAX_WIDTH tells nothing, nor does one of a voter that shares
errors with the image features (`voters.shared_errors`): the reference makes the same mistakes. Only
answers of a person tell then. Where they were drawn at random, the estimate is by them alone.

A voter of which nothing tells how right it is can make labels worse than those of the best voter.
`fuse_counted` leaves it out where it is likely to.

Letters: N images, n of a sample, C classes, V voters.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch

from latteclip.labels.fusion import SAMPLE, LabelModel, normalised
from latteclip.labels.fusion_report import VoterEstimate
from latteclip.labels.guarantees import confidence_sequence
from latteclip.labels.label_sources import NO_VOTE, LabelledRows, Votes
from latteclip.labels.likelihood import TINY, pool
from latteclip.labels.permutation_test import PermutationTest
from latteclip.labels.prototypes import spaced
from latteclip.labels.voter_model import (
    SAME_FAMILY,
    JointFusion,
    JointModel,
    Sampled,
    Voter,
    first_labels,
    shared_errors,
    zero_shot_labels,
)

Z = 1.96  # standard deviations of an interval of 95 %
MAX_WIDTH = 0.2
MARGIN = 0.03  # half the width of the interval by the answers that would tell
ZERO_SHOT = "zero_shot"
Tests = Mapping[str, PermutationTest]


def estimate_voters(
    joint: JointFusion, voters: Mapping[str, Votes], labelled: LabelledRows | None = None
) -> dict[str, VoterEstimate]:
    """Return an estimate for each voter, and for the zero-shot scores if there are any."""
    labels_of = {name: first_labels(votes) for name, votes in voters.items()}
    # Examples come after the labelled images.
    zero_shot = zero_shot_labels(joint.model.images)[: len(joint.fusion.labels)]
    if (zero_shot != NO_VOTE).any() and ZERO_SHOT not in labels_of:
        labels_of[ZERO_SHOT] = zero_shot
    contradiction = _contradiction(joint, labels_of)
    estimates = {}
    for name, labels in labels_of.items():
        by_answers = _by_answers(labels, labelled) if labelled is not None else None
        estimates[name] = by_answers or _by_votes(joint, name, labels, contradiction)
    return estimates


def _contradiction(joint: JointFusion, labels_of: Mapping[str, torch.Tensor]) -> float:
    """Return by how much images agree better with a voter when they learn from it alone.

    Several voters that share errors teach the images their own classes. Images then agree less with
    a voter that was made apart than they would. It is not known which of them is right.
    """
    model = joint.model
    largest = 0.0
    if not isinstance(model, JointModel) or not model.is_informed:
        return largest
    used = [name for name, voter in joint.voters.items() if voter is not None]
    for name, votes in zip(used, model.voters, strict=True):
        alone = LabelModel(model.images, votes, model.others, joint.tests[name])
        rows = _sample(model, labels_of[name])
        by_images = _by_images(model, rows).argmax(dim=1)
        together = (by_images == labels_of[name][rows]).double().mean()
        largest = max(largest, alone.learned_agreement() - float(together))
    return largest


def _sample(model: LabelModel, labels: torch.Tensor) -> torch.Tensor:
    """Return images with a vote, of which all are [N]."""
    return spaced((labels != NO_VOTE).nonzero()[:, 0], model.n_classes, SAMPLE)


def _by_images(
    model: LabelModel, rows: torch.Tensor, *, texts: bool = True
) -> torch.Tensor:
    """Return scores [n, C] of images by features, and by texts of classes."""
    weights = model.parameters.weights.clone()
    if not texts:
        weights[0] = 0
    return pool(model.last.predictors(rows), weights, model.last.offset)


def fuse_counted(
    fuse: Callable[[Mapping[str, Votes], Tests | None], JointFusion],
    voters: Mapping[str, Votes],
    labelled: LabelledRows | None = None,
    like_images: Collection[str] = (),
) -> tuple[JointFusion, dict[str, VoterEstimate]]:
    """Label images by all voters but those that are likely to do harm, and estimate all.

    `fuse` labels by some voters, of which it may have the tests. A voter of which nothing tells how
    right it is does not count where

    - it is one of `like_images`, which are computed as zero-shot scores are,
    - it shares errors with a voter that counts, and so adds nothing,
    - it is sure to be right less often than the voter with most right votes.
    """
    joint = fuse(voters, None)
    estimates = estimate_voters(joint, voters, labelled)
    informed = {name: voter for name, voter in joint.voters.items() if voter is not None}
    if not informed:
        return joint, estimates
    counts = _counting(informed, estimates, like_images)
    uncounted = [name for name in informed if name not in counts]
    if uncounted:
        counted = {name: votes for name, votes in voters.items() if name in counts}
        fused = fuse(counted, joint.tests)
        known = dict.fromkeys(voters) | dict(fused.voters)
        joint = replace(fused, voters=known, tests=joint.tests, uncounted=uncounted)
    return joint, estimates


def _counting(
    informed: Mapping[str, Voter],
    estimates: Mapping[str, VoterEstimate],
    like_images: Collection[str],
) -> set[str]:
    """Return the voters that count: the best, those with a reliable estimate, and some others."""
    order = sorted(informed, key=lambda name: -_right_votes(estimates[name]))
    reliable = {name for name in order if estimates[name].tells}
    apart = [name for name in order if name in reliable or name not in like_images]
    best = (apart or order)[0]
    counts = reliable | {best}
    families_of = {informed[name].family for name in counts}
    for name in apart:
        may_be_better = estimates[name].high >= estimates[best].low
        if may_be_better and informed[name].family not in families_of:
            counts.add(name)
            families_of.add(informed[name].family)
    return counts


def _right_votes(estimate: VoterEstimate) -> float:
    return (estimate.value or 0.0) * estimate.votes


def gains_of_voters(joint: JointFusion) -> dict[str, float]:
    """Return the share of all images whose label each voter is expected to correct.

    It is the probability, by all voters, that they gain by the label with the voter in place of the
    label by all others.
    """
    model = joint.model
    gains = dict.fromkeys(joint.voters, 0.0)
    rows = spaced(torch.arange(len(joint.fusion.labels)), model.n_classes, SAMPLE)
    informed = [name for name, voter in joint.voters.items() if voter is not None]
    if not informed or not model.is_informed:
        return gains
    posterior = model.log_posterior(rows).exp()
    best = posterior.amax(dim=1)
    for number, name in enumerate(informed):
        others = model.without(number).log_posterior(rows).argmax(dim=1, keepdim=True)
        gains[name] = float((best - posterior.gather(1, others)[:, 0]).mean())
    return gains


def _by_answers(labels: torch.Tensor, labelled: LabelledRows) -> VoterEstimate | None:
    """Return the estimate [N] by answers about images drawn at random, if a voter has some."""
    drawn = labelled.select(labelled.drawn)
    own = labels[drawn.rows].long()
    has = own != NO_VOTE
    answers = int(has.sum())
    if not answers:
        return None
    right = int((drawn.shares[has].gather(1, own[has][:, None]) > 0).sum())
    votes = int((labels != NO_VOTE).sum())
    low, high = confidence_sequence(right, answers, votes)
    return VoterEstimate(right / answers, low, high, True, "answers", votes, 0)


def _by_votes(
    joint: JointFusion, name: str, labels: torch.Tensor, contradiction: float
) -> VoterEstimate:
    model = joint.model
    voter = joint.voters.get(name)
    votes = int((labels != NO_VOTE).sum())
    rows = _sample(model, labels)
    nothing = VoterEstimate(
        None, 0.0, 1.0, False, "votes", votes, _answers_needed(0.5, votes)
    )
    if not len(rows) or not model.is_informed or (voter is None and name != ZERO_SHOT):
        return nothing
    own = labels[rows].long()[:, None]
    images = _by_images(model, rows, texts=name != ZERO_SHOT)
    others = _others(joint, name, rows)
    reference = (images + others).softmax(dim=1)
    value = float(reference.gather(1, own).mean())
    by_images = float(images.softmax(dim=1).gather(1, own).mean())
    unsure = float(1 - reference.amax(dim=1).mean())
    doubts = [value - by_images, unsure, contradiction]
    if others.ndim:
        doubts.append(value - _by_agreements(images, others, own))
    sampling = value * (1 - value) / votes
    half = Z * math.sqrt(sampling + sum(doubt**2 for doubt in doubts) / 4)
    low = max(0.0, value - half)
    high = min(1.0, value + half)
    is_apart = _shared_with_images(images, others, own[:, 0]) < SAME_FAMILY
    tells = is_apart and 2 * half <= MAX_WIDTH
    needed = 0 if tells else _answers_needed(value, votes)
    return VoterEstimate(value, low, high, tells, "votes", votes, needed, by_images)


def _others(joint: JointFusion, name: str, rows: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihood [n, C] of the votes of voters of other families."""
    model = joint.model
    voter = joint.voters.get(name)
    if not isinstance(model, JointModel):
        if voter is not None or not len(model.parameters.confusion):
            return torch.zeros(())
        has = model.votes.has[rows, None]
        return model.vote_log_likelihood(rows, model.parameters) * has
    own = None if voter is None else voter.family
    each = zip(model.families, model.log_likelihoods(rows), strict=True)
    return sum((table for family, table in each if family != own), torch.zeros(()))


def _by_agreements(images: torch.Tensor, others: torch.Tensor, own: torch.Tensor) -> float:
    """Return the share of right votes [n, 1] if voter, images and others err independently.

    Log-probabilities by images and by others are [n, C].
    """
    chance = 1 / images.shape[1]
    by_images, by_others = (table.softmax(dim=1) for table in (images, others))
    agreements = [
        by_images.gather(1, own).mean(),
        by_others.gather(1, own).mean(),
        (by_images * by_others).sum(dim=1).mean(),
    ]
    first, second, between = (
        max(TINY, (float(each) - chance) / max(TINY, 1 - chance)) for each in agreements
    )
    skill = min(1.0, math.sqrt(first * second / between))
    return chance + (1 - chance) * skill


def _shared_with_images(
    images: torch.Tensor, others: torch.Tensor, labels: torch.Tensor
) -> float:
    """Return the correlation of the residuals of votes [n] and of the best classes by images.

    Confusion matrices are those of the posterior [n, C] by all.
    """
    posterior = (images + others).softmax(dim=1)
    prior = 1 / posterior.shape[1]
    pair = [Sampled.of(labels), Sampled.of(images.argmax(dim=1))]
    confusions = [normalised(votes.counts(posterior) + prior) for votes in pair]
    correlations = shared_errors(posterior, pair, confusions)
    return float(correlations[0, 1])


def _answers_needed(share: float, votes: int) -> int:
    """Return how many answers drawn at random bound the share within MARGIN on both sides."""
    share = min(0.9, max(0.1, share))
    needed = share * (1 - share) * (Z / MARGIN) ** 2
    return math.ceil(needed / (1 + needed / max(1, votes)))
