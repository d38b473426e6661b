"""One model of several voters, of image features and of a person's answers. Not in the paper.

A voter names the class of some images: words of captions, a multimodal model, zero-shot scores of
another CLIP. `fusion` models one voter. This module models V of them:

    fused(c) ~= q(c | image)^e * prod_v P(vote_v | c)^(w_v)

q, e and each P(vote_v | c) are those of `fusion`. One voter is fused by `fusion` itself.

The confusion matrix of a voter is learned from the posterior with half of the voter's own weight
(`OTHERS_ONLY`): images and the other voters say which class an image has, so that no voter confirms
itself.

Voters share errors, two prompts of one model above all. rho_uv is the correlation of the residuals
of two voters: their votes less those that their confusion matrices expect under the posterior. It
is 1 for a copy and 0 for errors made apart. Voters with a mean rho of SAME_FAMILY or more are one
family (average linkage), which votes once. For each image, the weight of a voter is

    w_v = 1 / (votes of its family * (1 + sum of the mean rho with each other family that votes))

A voter has weight 0 if its votes agree with the image features no better than permuted votes do,
or if it only repeats the zero-shot labels: q has them already.

Prototypes take no more from images that no voter and no zero-shot score gives to a class than from
the others. A class that few voters name could else capture a cluster of another class.

Letters: N images, n of a sample, C classes, V voters.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from latteclip.labels import label_sources
from latteclip.labels.fusion import (
    EM_STEPS,
    SAMPLE,
    Fusion,
    FusionParameters,
    LabelModel,
    cross_fit,
    expected_votes,
    mean_votes,
    normalised,
    prior_votes,
    trust_in_images,
)
from latteclip.labels.label_sources import (
    NO_VOTE,
    CentredFeatures,
    ClipFeatures,
    Rows,
    Votes,
    parts,
)
from latteclip.labels.likelihood import RIDGE, TINY, minimise, pool
from latteclip.labels.permutation_test import PermutationTest, corroborate
from latteclip.labels.prototypes import Posterior, Prototypes, spaced

SAME_FAMILY = 0.5  # mean correlation of residuals from which voters are one family
# Share of the votes that are the zero-shot label, from which a voter beside others is a copy of it.
COPY = 0.98
MIN_SHARED = 10  # images of two voters below which nothing is known of shared errors
# Share of a voter's own vote that its confusion matrix is learned without.
OTHERS_ONLY = 0.5


class Voter(NamedTuple):
    """What was learned of one voter."""

    weight: float  # w
    family: int  # voters of one family share errors
    parameters: FusionParameters  # its confusion matrix


@dataclass(frozen=True)
class JointFusion:
    """Fused labels, and the voters they are made of."""

    fusion: Fusion
    voters: Mapping[str, Voter | None]  # None: a voter that carries no information
    model: LabelModel  # the model that was learned
    tests: Mapping[str, PermutationTest]  # the test of each voter
    # Voters that carry information, but do not count: nothing tells how right they are.
    uncounted: Sequence[str] = ()


class Sampled(NamedTuple):
    """Votes of one voter about n images."""

    labels: torch.Tensor  # [n] the likeliest class; any class where there is no vote
    has: torch.Tensor  # [n] bool

    @classmethod
    def of(cls, labels: torch.Tensor) -> "Sampled":
        return cls(labels.long().clamp(min=0), labels != NO_VOTE)

    def log_likelihood(self, confusion: torch.Tensor) -> torch.Tensor:
        """Return the log-likelihood [n, C] of the votes by class; 0 without a vote."""
        return (confusion.T + TINY).log()[self.labels] * self.has[:, None]

    def counts(self, table: torch.Tensor) -> torch.Tensor:
        """Return the expected numbers [C, C] of votes by class, for probabilities [n, C]."""
        n_classes = table.shape[1]
        counts = table.new_zeros(n_classes, n_classes)
        return counts.index_add_(0, self.labels[self.has], table[self.has]).T


class JointModel(LabelModel):
    """The model of the labels by several voters while it is learned."""

    def __init__(
        self,
        images: ClipFeatures,
        voters: Sequence[Votes],
        others: Sequence[CentredFeatures],
        test: PermutationTest,
    ) -> None:
        self.voters = list(voters)
        self.classes_of = [first_labels(one) for one in voters]  # [N] int32 for each voter
        self.zero_shot = zero_shot_labels(images)
        self.of_voters: list[FusionParameters] = []
        # Until errors are known, all voters are one family.
        n_voters = len(voters)
        self.families = [0] * n_voters
        self.shared = torch.ones(n_voters, n_voters, dtype=torch.float64)  # [V, V] rho
        texts = next((one.text_features for one in voters if one.text_features), None)
        has = torch.stack([one.has for one in voters]).any(dim=0)
        super().__init__(images, Votes(has, self._mean_vote, texts), others, test)

    def _mean_vote(self, rows: Rows) -> torch.Tensor:
        """Return the weighted mean [n, C] of the likeliest classes by all voters."""
        total = torch.zeros((), dtype=torch.float64)
        of_voters = self.vote_weights(rows).T  # [V, n]
        for labels, weights in zip(self.classes_of, of_voters, strict=True):
            numbers = labels[rows].long().clamp(min=0)
            table = F.one_hot(numbers, self.n_classes).double()
            total = total + weights[:, None] * table
        return total / total.sum(dim=1, keepdim=True).clamp(min=TINY)

    def vote_weights(self, rows: Rows) -> torch.Tensor:
        """Return the weight [n, V] of each voter for some images."""
        has = torch.stack([labels[rows] != NO_VOTE for labels in self.classes_of], dim=1)
        return family_weights(self.shared, self.families, has)

    def first(self, rows: Rows) -> torch.Tensor:
        return self._mean_vote(rows)

    def vote_log_likelihood(self, rows: Rows, parameters: FusionParameters) -> torch.Tensor:
        return sum(self.log_likelihoods(rows), torch.zeros(()))

    def without(self, number: int) -> LabelModel:
        """Return the model without the votes of a voter: others of its family have its weight."""
        model = copy.copy(self)
        model.classes_of = [*self.classes_of]
        model.classes_of[number] = torch.full_like(self.classes_of[number], NO_VOTE)
        others = [*self.voters]
        del others[number]
        has = torch.stack([one.has for one in others]).any(dim=0)
        model.votes = replace(self.votes, has=has)
        if self.voters[number].text_features is not None:
            model.parameters = replace(self.parameters, texts=0.0)
        return model

    def log_likelihoods(self, rows: Rows) -> list[torch.Tensor]:
        """Return the weighted log-likelihood [n, C] of each voter's votes by class."""
        of_voters = self.vote_weights(rows).T  # [V, n]
        likelihoods = []
        for weights, learned, votes in zip(
            of_voters, self.of_voters, self.voters, strict=True
        ):
            table = learned.log_likelihood(votes.probabilities(rows))
            likelihoods.append(weights[:, None] * table)
        return likelihoods

    def _of_used_models(self, posterior: Posterior) -> Prototypes:
        return super()._of_used_models(self._supported(posterior))

    def _supported(self, posterior: Posterior) -> Posterior:
        """Return a posterior in which no class lives of images that nothing gives to it."""
        named = posterior.classes == self.zero_shot[:, None]
        silent = torch.ones(self.n, dtype=torch.bool)
        for labels in self.classes_of:
            named |= posterior.classes == labels[:, None]
            silent &= labels == NO_VOTE
        named |= silent[:, None] | (self.answers.place >= 0)[:, None]
        shares = posterior.shares.double() * posterior.weights[:, None]
        classes = posterior.classes.long()

        def sums(table: torch.Tensor) -> torch.Tensor:
            return torch.bincount(
                classes.flatten(), table.flatten(), minlength=posterior.n_classes
            )

        supported = sums(shares * named)
        rest = sums(shares * ~named)
        factor = (supported / rest.clamp(min=TINY)).clamp(max=1)
        kept = posterior.shares.double() * torch.where(named, 1.0, factor[classes])
        left = kept.sum(dim=1)
        shares = (kept / left.clamp(min=TINY)[:, None]).float()
        return replace(posterior, shares=shares, weights=posterior.weights * left)

    def _learn(self) -> FusionParameters:
        if not self.parameters.test.significant:
            return super()._learn()
        answers = self.answers
        sample, small = self._learning_sample()
        predictors = self.last.predictors(sample)
        offset = self.last.offset
        votes = [Sampled.of(labels[sample]) for labels in self.classes_of]
        overall = [_overall(one, self.n_classes) for one in votes]
        some = [table[small] for table in predictors]
        cast = [Sampled(one.labels[small], one.has[small]) for one in votes]
        fit = _PredictorFit(some, cast, offset, answers.truth)
        weights, shares = fit.mixture(self.vote_weights(sample[small]), overall)
        base = [expected_votes(u, r) for u, r in zip(shares, overall, strict=True)]
        priors = [
            prior_votes(share, int(one.has.sum()), self.n_classes)
            for one, share in zip(self.voters, shares, strict=True)
        ]
        confusions = [one.confusion for one in self.of_voters] or base
        for _ in range(EM_STEPS):
            scores = pool(predictors, weights, offset)
            each = _weighted(self.vote_weights(sample), votes, confusions)
            total = sum(each, scores)
            confusions = []
            for one, own, prior, expected in zip(votes, each, priors, base, strict=True):
                by_others = (total - OTHERS_ONLY * own).softmax(dim=1)
                counts = one.counts(answers.at_end(by_others))
                confusions.append(normalised(counts + prior * expected))
            weights = fit.through(self.vote_weights(sample[small]), confusions, weights)
            posterior = answers.at_end(total.softmax(dim=1))
            self.shared = shared_errors(posterior, votes, confusions)
            self.families = families(self.shared)
        scores = pool(predictors, weights, offset)
        by_image = self.vote_weights(sample)
        # A voter that predictors explain nothing of says nothing about them.
        explained = torch.tensor(shares, dtype=torch.float64)
        counted = by_image * explained
        size = float(counted.sum().clamp(min=TINY))
        share = float((counted @ explained).sum()) / size
        best = scores.argmax(dim=1)
        hits = torch.stack([best == one.labels for one in votes], dim=1)
        agreement = float((hits * counted).sum()) / size
        e = trust_in_images(share, agreement)
        posterior = sum(_weighted(by_image, votes, confusions), e * scores)
        posterior = answers.at_end(posterior.softmax(dim=1))
        test = self.parameters.test
        zero_shot, *images = weights.tolist()
        self.of_voters = []
        for voter, confusion, prior, u in zip(
            self.voters, confusions, priors, shares, strict=True
        ):
            table = voter.probabilities(sample)
            of_votes = posterior * table.any(dim=1, keepdim=True)
            others = mean_votes(of_votes, table, prior * confusion)
            learned = FusionParameters(test, confusion, others, explained_share=u)
            self.of_voters.append(learned)
        parameters = FusionParameters(
            test=test,
            confusion=torch.stack(confusions).mean(dim=0),
            others=torch.empty(0, self.n_classes),
            zero_shot=zero_shot,
            images=tuple(images),
            explained_share=share,
            agreement=agreement,
        )
        return self._with_texts(parameters, sample[small], scores[small])


def _weighted(
    weights: torch.Tensor, votes: Sequence[Sampled], confusions: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the log-likelihood [n, C] of each voter's votes, by weights [n, V]."""
    each = zip(weights.T, votes, confusions, strict=True)
    return [weight[:, None] * one.log_likelihood(theta) for weight, one, theta in each]


class _PredictorFit:
    """The weights of predictors with which they make the votes of all voters likeliest."""

    def __init__(
        self,
        predictors: Sequence[torch.Tensor],
        votes: Sequence[Sampled],
        offset: torch.Tensor,
        truth: torch.Tensor,
    ) -> None:
        self.predictors = predictors
        self.offset = offset
        self.truth = truth
        # The last images are those with answers: their class is known, whatever voters say.
        n = len(predictors[0]) - len(truth)
        self.rows = [one.has[:n].nonzero()[:, 0] for one in votes]
        self.labels = [one.labels[rows] for one, rows in zip(votes, self.rows, strict=True)]

    def _loss(
        self,
        free: torch.Tensor,
        weights: torch.Tensor,
        seen: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        predicted = pool(self.predictors, free, self.offset).softmax(dim=1)
        total = free.new_zeros(())
        size = float(len(self.truth))
        for number, (rows, labels) in enumerate(zip(self.rows, self.labels, strict=True)):
            probability = seen(number, predicted[rows], labels)
            total = total - weights[rows, number] @ (probability + TINY).log()
            size += float(weights[rows, number].sum())
        if len(self.truth):
            total = (
                total - (self.truth * (predicted[-len(self.truth) :] + TINY).log()).sum()
            )
        return total / max(size, TINY) + RIDGE * free.square().sum()

    def mixture(
        self, weights: torch.Tensor, overall: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[float]]:
        """Return the weights, and the share u of each voter's votes that predictors explain."""
        n = len(self.predictors)

        def loss(free: torch.Tensor) -> torch.Tensor:
            shares = free[n:].sigmoid()

            def seen(
                number: int, table: torch.Tensor, labels: torch.Tensor
            ) -> torch.Tensor:
                own = table.gather(1, labels[:, None])[:, 0]
                share = shares[number]
                return share * own + (1 - share) * overall[number][labels]

            return self._loss(free[:n], weights, seen)

        start = torch.zeros(n + len(overall), dtype=torch.float64)
        fitted = minimise(loss, start, n)
        return fitted[:n], fitted[n:].sigmoid().tolist()

    def through(
        self, weights: torch.Tensor, confusions: Sequence[torch.Tensor], start: torch.Tensor
    ) -> torch.Tensor:
        """Return the weights with which predictors explain votes through confusion matrices."""

        def seen(number: int, table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return (table * confusions[number].T[labels]).sum(dim=1)

        return minimise(lambda free: self._loss(free, weights, seen), start, len(start))


def shared_errors(
    posterior: torch.Tensor, votes: Sequence[Sampled], confusions: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the correlations [V, V] of the residuals of voters, 0 where they are negative.

    A residual is the one-hot vote less the vote that the confusion matrix [C, C] expects of the
    class, and its products are expectations over the posterior [n, C].
    """
    correlations = torch.eye(len(votes), dtype=torch.float64)
    for u in range(len(votes)):
        for v in range(u):
            both = votes[u].has & votes[v].has
            if int(both.sum()) < MIN_SHARED:
                continue
            table = posterior[both]
            one = votes[u].labels[both], confusions[u]
            other = votes[v].labels[both], confusions[v]
            product = _residual_product(table, one, other)
            squares = _residual_product(table, one, one) * _residual_product(
                table, other, other
            )
            rho = product / max(squares, TINY) ** 0.5
            correlations[u, v] = correlations[v, u] = min(1.0, max(0.0, rho))
    return correlations


def _residual_product(
    table: torch.Tensor,
    one: tuple[torch.Tensor, torch.Tensor],
    other: tuple[torch.Tensor, torch.Tensor],
) -> float:
    """Return the sum of products of residuals, by the labels [n] and confusions of two voters."""
    (labels, confusion), (others, expected) = one, other
    total = (labels == others).double().sum()
    total = total - (table * expected.T[labels]).sum()
    total = total - (table * confusion.T[others]).sum()
    return float(total + (table @ (confusion * expected).sum(dim=1)).sum())


def families(shared: torch.Tensor) -> list[int]:
    """Return the family of each voter, by average linkage of the correlations [V, V]."""
    groups = [[number] for number in range(len(shared))]
    while len(groups) > 1:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        i, j = max(pairs, key=lambda pair: _mean(shared, groups[pair[0]], groups[pair[1]]))
        if _mean(shared, groups[i], groups[j]) < SAME_FAMILY:
            break
        groups[j] += groups.pop(i)
    family_of = [0] * len(shared)
    for family, members in enumerate(groups):
        for member in members:
            family_of[member] = family
    return family_of


def _mean(shared: torch.Tensor, one: Sequence[int], other: Sequence[int]) -> float:
    return float(shared[list(one)][:, list(other)].mean())


def family_weights(
    shared: torch.Tensor, family_of: Sequence[int], has: torch.Tensor
) -> torch.Tensor:
    """Return weights [n, V] of the votes that n images have [n, V], 0 without a vote.

    A family has one vote, which its members share. It weighs 1 over 1 + the sum of the mean
    correlations with the other families that vote.
    """
    numbers = torch.tensor(family_of)
    members = F.one_hot(numbers).double()  # [V, families]
    sizes = members.sum(dim=0)
    between = members.T @ shared @ members / (sizes[:, None] * sizes)
    between.fill_diagonal_(1)
    votes = has.double() @ members  # [n, families]
    weights = 1 / (votes * ((votes > 0).double() @ between)).clamp(min=1)
    return weights[:, numbers] * has


def fuse_voters(
    images: ClipFeatures,
    voters: Mapping[str, Votes],
    others: Sequence[CentredFeatures] = (),
    labelled: label_sources.LabelledRows | None = None,
    tests: Mapping[str, PermutationTest] | None = None,
) -> JointFusion:
    """Label N images by the votes of one or more voters, and say what each is worth.

    Where at most one voter carries information, the labels are those of `fusion.fuse`. `tests` are
    results of `test_voters`, if there are some already, perhaps of further voters as well.
    """
    tests = tests or test_voters(images, voters, others)
    model, used = start_model(images, voters, others, tests)
    checked = {}
    if labelled is not None:
        checked = cross_fit(model, labelled) if labelled.drawn.any() else {}
        model = model.answered(labelled)
    fusion = replace(model.fused(), checked=checked)
    learned = dict.fromkeys(voters) | _voters_of(model, fusion, used)
    return JointFusion(fusion, learned, model, tests)


def start_model(
    images: ClipFeatures,
    voters: Mapping[str, Votes],
    others: Sequence[CentredFeatures],
    tests: Mapping[str, PermutationTest],
) -> tuple[LabelModel, list[str]]:
    """Return the model of one or more voters before it is learned, and the voters in it.

    These are the voters that carry information by their tests, or else the first one.
    """
    zero_shot = zero_shot_labels(images) if len(voters) > 1 else None
    used = [
        name
        for name, votes in voters.items()
        if tests[name].significant and not _repeats(votes, zero_shot)
    ]
    used = used or list(voters)[:1]
    most = max(used, key=lambda name: int(voters[name].has.sum()))
    if len(used) == 1:
        return LabelModel(images, voters[most], others, tests[most]), used
    each = [voters[name] for name in used]
    return JointModel(images, each, others, tests[most]), used


def _repeats(votes: Votes, zero_shot: torch.Tensor | None) -> bool:
    """Return whether votes are the zero-shot labels [N]: such a voter would count them twice."""
    if zero_shot is None:
        return False
    labels = first_labels(votes)[votes.has]
    return bool((labels == zero_shot[votes.has]).double().mean() >= COPY)


def test_voters(
    images: ClipFeatures,
    voters: Mapping[str, Votes],
    others: Sequence[CentredFeatures] = (),
) -> dict[str, PermutationTest]:
    """Test whether each voter agrees with the images better than its permuted votes do."""
    tests = {}
    for name, votes in voters.items():
        rows = spaced(votes.has.nonzero()[:, 0], len(images.texts.bias), SAMPLE)
        tests[name] = corroborate(images, votes, rows, others)
    return tests


def _voters_of(model: LabelModel, fusion: Fusion, used: Sequence[str]) -> dict[str, Voter]:
    if not isinstance(model, JointModel) or not model.of_voters:
        if not fusion.parameters.test.significant:
            return {}
        return {used[0]: Voter(1.0, 0, fusion.parameters)}
    weights = model.vote_weights(slice(None))
    n_votes = (weights > 0).sum(dim=0).clamp(min=1)
    means = (weights.sum(dim=0) / n_votes).tolist()
    return {
        name: Voter(means[number], model.families[number], model.of_voters[number])
        for number, name in enumerate(used)
    }


def first_labels(votes: Votes) -> torch.Tensor:
    """Return the likeliest class [N] int32 of each image, or NO_VOTE."""
    first = torch.full((len(votes.has),), NO_VOTE, dtype=torch.int32)
    for rows in parts(len(first)):
        labels = votes.probabilities(rows).argmax(dim=1).int()
        first[rows] = torch.where(votes.has[rows], labels, NO_VOTE)
    return first


def zero_shot_labels(images: ClipFeatures) -> torch.Tensor:
    """Return the class [N] int32 by zero-shot scores, or NO_VOTE where texts say nothing."""
    n = len(images.centred)
    labels = torch.full((n,), NO_VOTE, dtype=torch.int32)
    if images.texts.weights.any():
        for rows in parts(n):
            logits = (
                images.centred[rows].double() @ images.texts.weights.T + images.text_bias
            )
            labels[rows] = logits.argmax(dim=1).int()
    return labels


def _overall(votes: Sampled, n_classes: int) -> torch.Tensor:
    """Return the shares [C] of the classes among the votes."""
    counts = torch.bincount(votes.labels[votes.has], minlength=n_classes).double()
    return counts / counts.sum().clamp(min=1)
