"""Zero-shot scores adapted to images, as a mixture of Gaussian classes. Not in the paper.

Classes are Gaussians of one covariance in the space of whitened image features, with frequencies
that are estimated. Expectation-maximisation starts from the zero-shot probabilities:

    p(c | image) ~= exp(z_c + o_c) * (frequency_c^(1/2) * density_c(image)^b)^e

- The density is that of the other images: an image has no part in the means it is compared with.
  One image at the origin is added to each class, so that a class without images attracts none.
- b makes these densities predict the posterior best: features of many dimensions are less
  independent than a Gaussian takes them to be.
- e says how far image features are trusted. Where classes are clusters, an image is much nearer to
  one mean than to the next, and hardly any image lies between. Where they are not, the distances to
  both means differ by little, with the spread of an exponential distribution (`separation`).
- o moves the share of each class by z alone towards its share by the posterior.

Before this, a share of each class's mean score may be subtracted from z. That removes CLIP's bias
towards some classes, but also what its scores know of the frequencies: which of both it is, scores
alone cannot tell. The share is one of those with the clearest clusters, and among these the one
with which image prototypes know most of the labels. Without clusters nothing is subtracted.

TransCLIP (Zanella et al. 2024, arXiv 2406.01837) has the mixture with a Laplacian in place of e.
Letters: n images of a sample, C classes, D embedding width.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F

from latteclip.labels.label_sources import (
    ClipFeatures,
    Head,
    Votes,
    class_score_votes,
    parts,
)
from latteclip.labels.likelihood import cross_entropy, fit_weights
from latteclip.labels.prototypes import (
    FREQUENCY_EXPONENT,
    SHARPNESS,
    Posterior,
    log_densities,
    own_part_left_out,
    spaced,
)

ROUNDS = 12
STEP = 0.25  # share of the way that o moves in each round
BIAS_SHARES = (0.0, 0.5, 1.0)
MIN_TRUST = 0.3  # below which classes are no clusters
CLEAR = 0.98  # share of the clearest clusters' separation that counts as clear too
RIDGE = 1e-5  # on b, which is larger than other weights
# Entries of a table of images and classes, and images, at most.
SAMPLE, MAX_IMAGES = 2**24, 2**16
SMALL_SAMPLE, MAX_SMALL = 2**21, 2**14  # the same where few numbers are learned


def adapt(images: ClipFeatures) -> ClipFeatures:
    """Return the same with adapted zero-shot logits, and zero-shot logits without their bias.

    They are learned from a sample of the images.
    """
    n_classes = len(images.texts.bias)
    if n_classes == 1:
        return images
    rows = _sample(torch.arange(len(images.centred)), n_classes, SAMPLE, MAX_IMAGES)
    some = replace(images, centred=images.centred[rows])
    mixtures = {share: _Mixture(some.without_bias(share)) for share in BIAS_SHARES}
    for mixture in mixtures.values():
        for _ in range(ROUNDS):
            mixture.step()
    share = _clearest(mixtures)
    return replace(images.without_bias(share), adapted=mixtures[share].head())


def _clearest(mixtures: Mapping[float, "_Mixture"]) -> float:
    """Return the share of the bias without which classes are the clearest clusters."""
    clearest = max(mixture.separation for mixture in mixtures.values())
    if clearest < 1 + MIN_TRUST:
        return 0.0
    known = {
        share: _information(*mixture.sample(mixture.first))
        for share, mixture in mixtures.items()
        if mixture.separation > CLEAR * clearest
    }
    return max(known, key=known.__getitem__)


class _Mixture:
    """The mixture while it is learned."""

    def __init__(self, images: ClipFeatures) -> None:
        n = len(images.centred)
        self.n_classes = len(images.texts.bias)
        self.images = images
        self.texts = images.texts
        self.small = _sample(torch.arange(n), self.n_classes, SMALL_SAMPLE, MAX_SMALL)
        self.weights = torch.ones(n, dtype=torch.float64)
        self.posterior = Posterior.of(images.probabilities, self.n_classes, self.weights)
        self.first = self.posterior
        self.separation = 1.0
        self.log_frequencies = torch.zeros(self.n_classes, dtype=torch.float64)

    def step(self) -> None:
        """Learn the parameters from the posterior, and the posterior from the parameters."""
        x, table = self.sample(self.posterior)
        self.before = self.posterior
        self.counts = self.posterior.counts(slice(None))
        self.sums = torch.zeros_like(self.texts.weights)
        for rows in parts(len(self.weights)):
            features = self.images.centred[rows].double()
            self.sums += self.posterior.sums(rows, features)
        densities = log_densities(x, table, self.sums, self.counts)
        prior = FREQUENCY_EXPONENT * self.log_frequencies
        fitted = fit_weights([densities], table, offset=prior, precision=RIDGE)
        self.sharpness = fitted.item()
        scores = own_part_left_out(x, table, self.sums)
        self.separation = separation(scores)
        self.trust = min(1.0, max(0.0, self.separation - 1))
        self.log_frequencies = self.posterior.log_frequencies()
        probabilities = self.texts.logits(x).softmax(dim=1)
        by_texts = probabilities.mean(dim=0) + 1 / len(x)
        lacking = self.log_frequencies - by_texts.log()
        bias = self.texts.bias + STEP * lacking
        self.texts = self.texts._replace(bias=bias)
        self.posterior = Posterior.of(self._probabilities, self.n_classes, self.weights)

    def sample(self, posterior: Posterior) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [n, D] of some images, and their probabilities [n, C]."""
        return self.images.centred[self.small].double(), posterior.table(self.small)

    def _probabilities(self, rows: slice) -> torch.Tensor:
        x = self.images.centred[rows].double()
        densities = log_densities(x, self.before.table(rows), self.sums, self.counts)
        prior = FREQUENCY_EXPONENT * self.log_frequencies
        by_images = self.sharpness * densities + prior
        return (self.texts.logits(x) + self.trust * by_images).softmax(dim=1)

    def head(self) -> Head:
        """Return the classifier of new images."""
        means = self.sums / (self.counts + 1)[:, None]
        prior = FREQUENCY_EXPONENT * self.log_frequencies
        bias = prior - 0.5 * self.sharpness * means.square().sum(dim=1)
        weights = self.texts.weights + self.trust * self.sharpness * means
        return Head(weights, self.texts.bias + self.trust * bias)


def separation(scores: torch.Tensor) -> float:
    """Return how far classes are clusters, by scores [n, C] of images.

    The margin of an image is the difference of its two largest scores. The mean margin over the
    standard deviation of margins is 1 for an exponential distribution, and larger where few images
    lie between classes.
    """
    best = scores.topk(2, dim=1).values
    margins = best[:, 0] - best[:, 1]
    spread = margins.std(unbiased=False).item()
    return margins.mean().item() / spread if spread > 0 else 1.0


def unbiased_votes(
    images: ClipFeatures, options: torch.Tensor, scores: torch.Tensor
) -> Votes:
    """Return `class_score_votes` [N, K] without the best share of each class's mean score."""
    n_classes = len(images.texts.bias)
    candidates = [
        class_score_votes(options, scores, n_classes, share) for share in BIAS_SHARES
    ]
    rows = candidates[0].has.nonzero()[:, 0]
    rows = _sample(rows, n_classes, SMALL_SAMPLE, MAX_SMALL)
    x = images.centred[rows].double()
    return max(candidates, key=lambda votes: _information(x, votes.probabilities(rows)))


def _information(x: torch.Tensor, table: torch.Tensor) -> float:
    """Return the nats that prototypes by a table [n, C] know of its labels.

    They are the entropy of the labels less the cross-entropy of their prediction by prototypes of
    the other images.
    """
    if not len(x):
        return 0.0
    n_classes = table.shape[1]
    labels = F.one_hot(table.argmax(dim=1), n_classes).double()
    scores = SHARPNESS * own_part_left_out(x, table, table.T @ x)
    counts = labels.sum(dim=0) + 0.5
    frequencies = counts / (len(x) + 0.5 * n_classes)
    log_frequencies = frequencies.log()
    (sharpness,) = fit_weights([scores], labels, offset=log_frequencies)
    predicted = (sharpness * scores + log_frequencies).softmax(dim=1)
    entropy = -(frequencies * log_frequencies).sum()
    return float(entropy - cross_entropy(labels, predicted))


def _sample(rows: torch.Tensor, n_classes: int, entries: int, images: int) -> torch.Tensor:
    """Return evenly spaced rows: about so many entries of a table of classes, so many at most."""
    rows = spaced(rows, n_classes, entries)
    step = math.ceil(max(1, len(rows)) / images)
    return rows[::step]
