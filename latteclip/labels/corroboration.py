"""Whether votes say anything of their images at all: a permutation test without labels.

If what an image's caption votes for has to do with the image, then images that look alike get
votes that are alike, and votes agree with zero-shot scores. How much they do so is compared with
votes that were dealt out anew to the images, at random.

Letters: N images, n some of them, C classes.
"""

from dataclasses import dataclass

import torch

from latteclip.labels.witnesses import Images, Votes

DEALS = 999  # so that being the largest of all has the probability 0.001
MOST, FEWEST = 4096, 1024  # images that are looked at where there are as many
WORK = 2**28  # their number times D C: what decides in between
SEED = 0


@dataclass(frozen=True)
class Corroboration:
    """How far votes agree with the images, in standard deviations over random deals."""

    images: float  # with how alike the images look
    zero_shot: float  # with the zero-shot scores
    p_value: float  # of both together

    @property
    def found(self) -> bool:
        """Whether no random deal agreed as much."""
        return self.p_value <= 1 / (DEALS + 1)


def corroborate(images: Images, votes: Votes, sample: torch.Tensor) -> Corroboration:
    """Test the votes of some images, or of some of these.

    Two statistics, each standardised over the deals, and their sum:

    - sum_{i != j} <x_i, x_j> <v_i, v_j>, the Hilbert-Schmidt independence criterion with linear
      kernels (Gretton et al. 2005), x features and v votes about their means;
    - sum_i <z_i, v_i>, z zero-shot probabilities.

    Args:
        sample: [n] indices of images with votes.
    """
    if len(sample) == 0:
        return Corroboration(images=0.0, zero_shot=0.0, p_value=1.0)
    sample = sample[:: -(-len(sample) // _most(images))]
    features, zero_shot = images.centred[sample].double(), images.zero_shot(sample).exp()
    lengths, dealt = features.square().sum(dim=1), votes.dealing(sample)

    def statistics(deal: torch.Tensor) -> list[float]:
        cast = dealt(deal)
        cast = cast - cast.mean(dim=0)
        alike = (features.T @ cast).square().sum() - lengths @ cast.square().sum(dim=1)
        return [alike.item(), (zero_shot * cast).sum().item()]

    draw = torch.Generator().manual_seed(SEED)
    deals = [torch.randperm(len(sample), generator=draw) for _ in range(DEALS)]
    found = torch.tensor(
        [statistics(deal) for deal in (torch.arange(len(sample)), *deals)], dtype=torch.float64
    )  # [1 + DEALS, 2]
    spread = found[1:].std(dim=0)
    standard = (found - found[1:].mean(dim=0)) / torch.where(spread > 0, spread, torch.inf)
    together = standard.sum(dim=1)
    as_large = int((together[1:] >= together[0]).sum())
    looks, scores = standard[0].tolist()
    return Corroboration(looks, scores, (1 + as_large) / (1 + DEALS))


def _most(images: Images) -> int:
    """How many images are looked at."""
    return min(MOST, max(FEWEST, WORK // images.texts.numel()))
