"""Votes, zero-shot scores and image prototypes that predict one another: ours, beyond the paper.

A caption (or a multimodal model that is asked) votes for the class of its image. How far votes can
be trusted is learned from how well they are predicted by two witnesses that never saw them:
calibrated zero-shot scores z, and cosines s with one prototype of images per class, each image's
own part left out. Without any label, in ROUNDS rounds:

    q(c | image)    = softmax_c(a z_c + b s_c)
    P(vote k | c)   = theta_ck, near u [k = c] + (1 - u) r_k
    fused(c)       ~= q(c | image)^(1 - u^4) * sum_k v_k theta_ck * exp(w t_c)

a, b and u maximise the likelihood of the votes v, r is their mean; theta [C, C], who is taken for
whom, follows by expectation-maximisation (Dawid and Skene 1979) under a Dirichlet prior; t are
cosines of the caption with prototypes of captions, and w is as far as they agree with q. The next
round's prototypes are means under `fused`.

u is the share of the votes that q predicts. Where it is large, votes and q make the same mistakes,
and multiplied with each other as if they did not, they would be sure of those: hence the exponent,
whose form is a guess that two development sets bear out. Where votes agree with the others no
better than if they were dealt out at random (`corroboration`), they say nothing, and the labels are
those of z.

Computed in float64, some rows at a time; learned on a sample where there are many images.

Letters: N training images, n some of them, C classes, D embedding width, K classes kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from latteclip.clip.classifier import best_classes
from latteclip.labels.corroboration import Corroboration, corroborate
from latteclip.labels.witnesses import (
    Images,
    Rows,
    Votes,
    ZeroShotVotes,
    parts,
)

ROUNDS = 8
STEPS = 3  # of expectation-maximisation in each round
INDEPENDENCE = 4  # power of u that is taken off: found on the demo and on photographs of DTD
PRIOR = 5.0  # votes of each class as a, b and u predict them, times 1 / u^2
SHARPNESS = 5.0  # of cosines: it brings them to the size of log-probabilities
RIDGE = 1e-4  # on the weights: a witness that is constant gets none
SAMPLE = 2**23  # entries of a table of images and classes that theta is learned from, at most
FEW = 2**21  # the same for what is a few numbers: a, b, u, w
KEPT = 16  # classes of an image that have a share in the prototypes
TINY = 1e-9


@dataclass(frozen=True)
class Posterior:
    """Probabilities of classes: of each image the KEPT largest, which sum to 1."""

    classes: torch.Tensor  # [N, K] int32
    shares: torch.Tensor  # [N, K] float32; of an image of which nothing is known yet 0
    n_classes: int

    @classmethod
    def empty(cls, n: int, n_classes: int) -> Self:
        """Of n images, to be filled by `put`."""
        k = min(KEPT, n_classes)
        return cls(torch.zeros(n, k, dtype=torch.int32), torch.zeros(n, k), n_classes)

    def put(self, rows: slice, table: torch.Tensor) -> None:
        """Keep probabilities [n, C], or rows of zeros."""
        classes, shares = best_classes(table, self.classes.shape[1])
        self.classes[rows] = classes.int()
        self.shares[rows] = (shares / shares.sum(dim=1, keepdim=True).clamp(min=TINY)).float()

    def table(self, rows: Rows) -> torch.Tensor:
        """[n, C] float64."""
        shares = self.shares[rows].double()
        table = shares.new_zeros(len(shares), self.n_classes)
        return table.scatter_(1, self.classes[rows].long(), shares)

    def sums(self, rows: slice, x: torch.Tensor) -> torch.Tensor:
        """Sums [C, D] of x [n, D] float64 by the shares of these rows in the classes."""
        classes, shares = self.classes[rows].long(), self.shares[rows].double()
        owners = torch.arange(len(x))[:, None].expand_as(classes)
        table = torch.sparse_coo_tensor(
            torch.stack([classes.flatten(), owners.flatten()]),
            shares.flatten(),
            (self.n_classes, len(x)),
            check_invariants=True,
        )
        return table @ x


@dataclass(frozen=True)
class Trust:
    """What was learned of the witnesses."""

    corroboration: Corroboration
    confusion: torch.Tensor  # [C, C] theta; without votes that are found to tell, no rows
    zero_shot: float = 1.0  # a
    images: float = 0.0  # b
    texts: float = 0.0  # w
    rate: float = 0.0  # u

    @property
    def independent(self) -> float:
        """1 - u^4, what q counts beside the votes."""
        return 1 - self.rate**INDEPENDENCE

    def classes(self, votes: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of classes [n, C] by votes [n, C] alone.

        A class that votes name too often gains less by a vote.
        """
        return told(votes, self.confusion).softmax(dim=1) if len(self.confusion) else votes


@dataclass(frozen=True)
class Fusion:
    """Fused labels and how they came about."""

    trust: Trust
    labels: torch.Tensor  # [N] the likeliest class
    confidence: torch.Tensor  # [N] float32, its probability
    said: dict[str, torch.Tensor]  # [N] the class that "zero_shot" and "images" alone are for
    head: torch.Tensor  # [N] that of both by the weights below, without the image's own part
    weights: torch.Tensor  # [C, D] float64: a z + b s, as logits of centred features
    gains: dict[str, float]  # log-likelihood of the votes over their mean, by who predicts them


class Witnesses:
    """All that is known of the images, with the prototypes of one posterior."""

    def __init__(self, images: Images, votes: Votes, posterior: Posterior) -> None:
        self.images, self.votes, self.posterior = images, votes, posterior
        self.prototypes = torch.zeros_like(images.texts)  # [C, D]
        self.text_prototypes = torch.zeros_like(images.texts)
        for rows in parts(len(images.centred)):
            self.prototypes += posterior.sums(rows, images.centred[rows].double())
            texts = votes.features(rows)
            if texts is not None:
                self.text_prototypes += posterior.sums(rows, texts)

    def predictors(self, rows: Rows) -> list[torch.Tensor]:
        """Z and s, [n, C] each: what predicts the votes."""
        x, table = self.images.centred[rows].double(), self.posterior.table(rows)
        scores = own_part_left_out(x, table, self.prototypes)
        return [self.images.zero_shot(rows), SHARPNESS * scores]

    def text_scores(self, rows: Rows) -> torch.Tensor | None:
        """T [n, C], 0 where there is no caption; None where there is none at all."""
        texts = self.votes.features(rows)
        if texts is None:
            return None
        scores = own_part_left_out(texts, self.posterior.table(rows), self.text_prototypes)
        found: torch.Tensor = SHARPNESS * scores * self.votes.has[rows, None]
        return found

    def head(self) -> torch.Tensor:
        """The image scores s as logits [C, D] of centred features without a part in them."""
        lengths = self.prototypes.norm(dim=1, keepdim=True).clamp(min=TINY)
        found: torch.Tensor = SHARPNESS * self.prototypes / lengths
        return found

    def learn(self, sample: torch.Tensor, votes: torch.Tensor, before: Trust) -> Trust:
        """The likeliest weights on a sample of n images with votes [n, C].

        Args:
            before: what the round before learned; of the first, rows are missing in its confusion.
        """
        predictors, overall = self.predictors(sample), votes.mean(dim=0)
        few = _spaced(torch.arange(len(sample)), len(overall), FEW)
        some, cast = [table[few] for table in predictors], votes[few]
        weights, rate = fit_mixture(some, cast, overall)
        base = rate * torch.eye(len(overall), dtype=torch.float64) + (1 - rate) * overall
        confusion = before.confusion if len(before.confusion) else base
        for _ in range(STEPS):
            predicted = pool(predictors, weights).softmax(dim=1)
            # Expected counts of votes by class, [C, C].
            counts = confusion * (predicted.T @ (votes / (predicted @ confusion).clamp(min=TINY)))
            confusion = counts + PRIOR / max(rate, TINY) ** 2 * base
            confusion = confusion / confusion.sum(dim=1, keepdim=True)
            weights = fit_weights(some, cast, confusion, weights)
        texts, scores = 0.0, self.text_scores(sample[few])
        if scores is not None:
            predicted = pool(some, weights).softmax(dim=1)
            both = [told(cast, confusion), scores]
            texts = fit_weights(both, predicted)[1].item()
        zero_shot, images = weights.tolist()
        return Trust(before.corroboration, confusion, zero_shot, images, texts, rate)

    def log_posterior(self, rows: Rows, trust: Trust) -> torch.Tensor:
        """[n, C]: log fused(c), normalised."""
        has = self.votes.has[rows, None]
        weights = torch.tensor([trust.zero_shot, trust.images], dtype=torch.float64)
        scores = pool(self.predictors(rows), weights)
        scores = torch.where(has, trust.independent * scores, scores)
        scores = scores + told(self.votes.probabilities(rows), trust.confusion) * has
        texts = self.text_scores(rows) if trust.texts else None
        if texts is not None:
            scores = scores + trust.texts * texts
        return scores.log_softmax(dim=1)


def own_part_left_out(
    x: torch.Tensor, table: torch.Tensor, prototypes: torch.Tensor
) -> torch.Tensor:
    """Products [n, C] of rows with L2-normalised prototypes, each without the row's own part.

    Args:
        x: [n, D].
        table: [n, C] the share of each row in each prototype.
        prototypes: [C, D], sums of the rows by their shares.
    """
    products, own = x @ prototypes.T, x.square().sum(dim=1, keepdim=True)
    squares = prototypes.square().sum(dim=1) - 2 * table * products + table.square() * own
    return (products - table * own) / squares.clamp(min=1e-6).sqrt()


def fuse(images: Images, votes: Votes) -> Fusion:
    """Fuse what zero-shot scores, image prototypes and votes say of N images.

    Args:
        images: the N images.
        votes: for them.
    """
    n, n_classes = len(images.centred), len(images.texts)
    sample = _spaced(votes.has.nonzero()[:, 0], n_classes, SAMPLE)
    cast = votes.probabilities(sample)  # [n, C]
    found = corroborate(images, votes, sample)
    posterior = Posterior.empty(n, n_classes)
    for rows in parts(n):
        posterior.put(rows, votes.probabilities(rows))
    witnesses = Witnesses(images, votes, posterior)
    trust = Trust(found, cast.new_empty(0, n_classes))
    if not found.found:
        return _calibrated(witnesses, trust)
    for _ in range(ROUNDS):
        trust = witnesses.learn(sample, cast, trust)
        posterior = Posterior.empty(n, n_classes)
        for rows in parts(n):
            posterior.put(rows, witnesses.log_posterior(rows, trust).exp())
        last, witnesses = witnesses, Witnesses(images, votes, posterior)
    few = _spaced(sample, n_classes, FEW)
    gained = gains(last.predictors(few), votes.probabilities(few))
    return _fused(last, witnesses, trust, gained)


def prototypes_by_zero_shot(images: Images) -> torch.Tensor:
    """The head z + (1 - u^4) b s, logits [C, D] of centred features, without any vote.

    Zero-shot scores vote in the place of captions, and image prototypes alone predict them.
    """
    votes = ZeroShotVotes(images)
    posterior = Posterior.empty(len(images.centred), len(images.texts))
    for rows in parts(len(images.centred)):
        posterior.put(rows, votes.probabilities(rows))
    witnesses = Witnesses(images, votes, posterior)
    sample = _spaced(torch.arange(len(images.centred)), len(images.texts), FEW)
    cast = votes.probabilities(sample)
    weights, rate = fit_mixture(witnesses.predictors(sample)[1:], cast, cast.mean(dim=0))
    return images.texts + (1 - rate**INDEPENDENCE) * weights * witnesses.head()


def _spaced(rows: torch.Tensor, n_classes: int, entries: int) -> torch.Tensor:
    """Some of these images, evenly spaced, whose table of classes has about so many entries."""
    return rows[:: -(-max(1, len(rows)) * n_classes // entries)]


def _calibrated(witnesses: Witnesses, trust: Trust) -> Fusion:
    """What is left where the votes tell nothing: calibrated zero-shot scores."""
    n = len(witnesses.images.centred)
    labels, confidence = torch.empty(n, dtype=torch.long), torch.empty(n)
    for rows in parts(n):
        best = witnesses.images.zero_shot(rows).exp().max(dim=1)
        labels[rows], confidence[rows] = best.indices, best.values.float()
    said = {"zero_shot": labels}
    return Fusion(trust, labels, confidence, said, labels, witnesses.images.texts, {})


def _fused(last: Witnesses, after: Witnesses, trust: Trust, gained: dict[str, float]) -> Fusion:
    """The labels of the last round, and the head with the prototypes that they make."""
    n = len(last.images.centred)
    labels, zero_shot, images, head = (torch.empty(n, dtype=torch.long) for _ in range(4))
    both = torch.tensor([trust.zero_shot, trust.images], dtype=torch.float64)
    confidence = torch.empty(n)
    for rows in parts(n):
        best = last.log_posterior(rows, trust).exp().max(dim=1)
        labels[rows], confidence[rows] = best.indices, best.values.float()
        zero_shot[rows], images[rows] = (table.argmax(1) for table in last.predictors(rows))
        head[rows] = pool(after.predictors(rows), both).argmax(1)
    said = {"zero_shot": zero_shot, "images": images}
    weights = trust.zero_shot * last.images.texts + trust.images * after.head()
    return Fusion(trust, labels, confidence, said, head, weights, gained)


def pool(tables: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of tables [n, C]."""
    first, *others = (weight * table for weight, table in zip(weights, tables, strict=True))
    pooled: torch.Tensor = sum(others, first)
    return pooled


def told(votes: torch.Tensor, confusion: torch.Tensor) -> torch.Tensor:
    """[n, C]: log sum_k v_k theta_ck, what votes [n, C] tell of each class."""
    return (votes @ confusion.T + TINY).log()


def fit_mixture(
    predictors: Sequence[torch.Tensor], votes: torch.Tensor, overall: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The weights and the rate u with which u softmax(pool) + (1 - u) r is likeliest.

    Args:
        predictors: tables [n, C].
        votes: [n, C] of the same images.
        overall: [C] r.
    """

    def loss(free: torch.Tensor) -> torch.Tensor:
        rate = free[-1].sigmoid()
        mixed = rate * pool(predictors, free[:-1]).softmax(dim=1) + (1 - rate) * overall
        return _cross_entropy(votes, mixed) + RIDGE * free[:-1].square().sum()

    free = _minimise(loss, torch.zeros(len(predictors) + 1, dtype=torch.float64), len(predictors))
    return free[:-1], free[-1].sigmoid().item()


def fit_weights(
    predictors: Sequence[torch.Tensor],
    targets: torch.Tensor,
    confusion: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights with which softmax(pool), seen through a confusion [C, C], is likeliest.

    Args:
        predictors: tables [n, C].
        targets: [n, C] probabilities.
    """
    first = torch.zeros(len(predictors), dtype=torch.float64) if start is None else start

    def loss(free: torch.Tensor) -> torch.Tensor:
        predicted = pool(predictors, free).softmax(dim=1)
        seen = predicted if confusion is None else predicted @ confusion
        return _cross_entropy(targets, seen) + RIDGE * free.square().sum()

    return _minimise(loss, first, len(first))


def gains(predictors: Sequence[torch.Tensor], votes: torch.Tensor) -> dict[str, float]:
    """Nats per vote that the predictors z and s gain over the mean vote, together and alone."""
    overall = votes.mean(dim=0)
    blind = _cross_entropy(votes, overall.expand_as(votes))
    found = {}
    for name, tables in (
        ("both", predictors),
        ("zero_shot", predictors[:1]),
        ("images", predictors[1:]),
    ):
        weights, rate = fit_mixture(tables, votes, overall)
        mixed = rate * pool(tables, weights).softmax(dim=1) + (1 - rate) * overall
        found[name] = (blind - _cross_entropy(votes, mixed)).item()
    return found


def _cross_entropy(targets: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Mean over rows [n, C], nats."""
    return -(targets * (predicted + TINY).log()).sum(dim=1).mean()


def _minimise(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, n_weights: int
) -> torch.Tensor:
    """Where the loss is least by L-BFGS, the first entries being weights and none of them negative.

    Nobody is believed to say the opposite: who would be gets 0, and the others are fitted anew.
    """
    believed = torch.ones_like(start)
    while True:
        found = _descend(loss, start * believed, believed)
        if not (found[:n_weights] < 0).any():
            return found
        believed[found[:n_weights].argmin()] = 0


def _descend(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, believed: torch.Tensor
) -> torch.Tensor:
    """Where the loss is least while entries that are not believed, 0 in place of 1, are 0."""
    free = start.requires_grad_()
    optimiser = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = loss(free * believed)
        value.backward()
        return value.item()

    optimiser.step(closure)
    return free.detach() * believed
