"""A test without labels of whether votes carry information about their images.

Letters: n images of a sample, C classes, D embedding width, M image encoders.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from latteclip.labels.label_sources import CentredFeatures, ClipFeatures, Votes

N_PERMUTATIONS = 999  # so that the smallest p-value is 0.001
# Images in the test, at most and at least, where there are as many.
MAX_IMAGES, MIN_IMAGES = 4096, 1024
MAX_PRODUCTS = 2**28  # images times D times C, at most: it decides between the two
GATHER = 16  # multiplications in whose time an entry of a table is moved
SEED = 0
Statistics = Callable[[torch.Tensor], list[float]]  # the argument is a permutation [n]


@dataclass(frozen=True)
class PermutationTest:
    """How far votes agree with the images, in standard deviations over permutations."""

    images: float  # agreement with similarities of CLIP's image features
    zero_shot: float  # agreement with the zero-shot scores
    p_value: float  # p-value of the sum of all statistics
    # Agreement with similarities of other models' image features.
    others: tuple[float, ...] = ()
    p_values: tuple[float, ...] = ()  # p-values of the statistics of these models alone

    @property
    def significant(self) -> bool:
        """Whether no permutation agreed as well."""
        return self.p_value <= 1 / (N_PERMUTATIONS + 1)

    @property
    def informative(self) -> list[int]:
        """Numbers of the other models with which no permutation agreed as well."""
        return [i for i, p in enumerate(self.p_values) if p <= 1 / (N_PERMUTATIONS + 1)]


def corroborate(
    images: ClipFeatures,
    votes: Votes,
    sample: torch.Tensor,
    others: Sequence[CentredFeatures] = (),
) -> PermutationTest:
    """Test without labels whether votes carry information about their images.

    The statistics are standardised over the permutations and summed:

    - for each image encoder, sum_{i != j} <x_i, x_j> <v_i, v_j>, the Hilbert-Schmidt independence
      criterion with linear kernels (Gretton et al. 2005), x features and v votes about their means;
    - sum_i <z_i, v_i>, z zero-shot probabilities.

    Images are a sample [n] of those with votes, of which a part may be enough.
    """
    if len(sample) == 0:
        return PermutationTest(0.0, 0.0, 1.0, (0.0,) * len(others), (1.0,) * len(others))
    models = (images, *others)
    width = sum(len(model.mean) for model in models)
    products = width * len(images.texts.bias)  # multiplications for one image
    size = min(MAX_IMAGES, max(MIN_IMAGES, MAX_PRODUCTS // products))
    sample = sample[:: math.ceil(len(sample) / size)]
    features = [model.centred[sample].double() for model in models]
    zero_shot = images.probabilities(sample)
    if votes.permuted is None and GATHER * len(sample) < products:
        statistics = _by_kernels(features, zero_shot, votes.probabilities(sample))
    else:
        statistics = _by_votes(features, zero_shot, votes.reordered(sample))
    n = len(sample)
    draw = torch.Generator().manual_seed(SEED)
    rows = [statistics(torch.arange(n))]
    for _ in range(N_PERMUTATIONS):
        rows.append(statistics(torch.randperm(n, generator=draw)))
    table = torch.tensor(rows, dtype=torch.float64)  # [1 + N_PERMUTATIONS, 1 + M]
    spread = table[1:].std(dim=0)
    spread = torch.where(spread > 0, spread, torch.inf)
    standard = (table - table[1:].mean(dim=0)) / spread
    columns = torch.cat([standard.sum(dim=1, keepdim=True), standard[:, 2:]], dim=1)
    as_large = (columns[1:] >= columns[0]).sum(dim=0).tolist()
    p_value, *p_values = ((1 + number) / (1 + N_PERMUTATIONS) for number in as_large)
    by_images, by_scores, *by_others = standard[0].tolist()
    return PermutationTest(by_images, by_scores, p_value, tuple(by_others), tuple(p_values))


def _by_kernels(
    features: Sequence[torch.Tensor], zero_shot: torch.Tensor, votes: torch.Tensor
) -> Statistics:
    """Return the statistics of permuted rows of votes [n, C], from products of pairs of images.

    They take n * n steps for each permutation, and those of `_by_votes` n * D * C.
    """
    votes = votes - votes.mean(dim=0)
    kernels = [(x @ x.T).fill_diagonal_(0) for x in features]
    of_votes = votes @ votes.T
    of_scores = zero_shot @ votes.T

    def statistics(order: torch.Tensor) -> list[float]:
        permuted = of_votes[order][:, order]
        by_images, *by_others = ((kernel * permuted).sum().item() for kernel in kernels)
        by_scores = of_scores.gather(1, order[:, None]).sum().item()
        return [by_images, by_scores, *by_others]

    return statistics


def _by_votes(
    features: Sequence[torch.Tensor],
    zero_shot: torch.Tensor,
    permuted: Callable[[torch.Tensor], torch.Tensor],
) -> Statistics:
    """Return the statistics of votes [n, C], which a function permutes."""
    norms = [x.square().sum(dim=1) for x in features]

    def statistics(order: torch.Tensor) -> list[float]:
        votes = permuted(order)
        votes = votes - votes.mean(dim=0)
        own = votes.square().sum(dim=1)
        by_model = []
        for x, norm in zip(features, norms, strict=True):
            covariance = (x.T @ votes).square().sum()
            by_model.append((covariance - norm @ own).item())
        by_images, *by_others = by_model
        by_scores = (zero_shot * votes).sum().item()
        return [by_images, by_scores, *by_others]

    return statistics
