"""Images, class texts and votes of which the classes are known, made from random numbers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import FeatureMemmap
from latteclip.labels.adaptation import adapt
from latteclip.labels.label_sources import (
    ClipFeatures,
    Votes,
    caption_votes,
    whiten,
)

SCALE = 30.0
ALL = slice(None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@dataclass
class World:
    """N images of C classes, the classes' texts, and what each image shows."""

    classes: torch.Tensor  # [N]
    features: torch.Tensor  # [N, D]
    texts: torch.Tensor  # [C, D]

    @classmethod
    def of(cls, n=900, c=6, d=24, *, seed=0, noise=0.5, text_noise=0.2):
        """Features around a direction of each class and one of all; texts near those of classes."""
        draw = generator(seed)
        classes = torch.randint(c, (n,), generator=draw)
        centres = F.normalize(torch.randn(c, d, generator=draw), dim=1)
        texts = F.normalize(centres + text_noise * torch.randn(c, d, generator=draw), dim=1)
        noises = noise * torch.randn(n, d, generator=draw)
        return cls(classes, F.normalize(centres[classes] + noises + 0.5, dim=1), texts)

    @property
    def n_classes(self):
        return len(self.texts)

    def images(self):
        return ClipFeatures.of(self.features.clone(), self.texts, SCALE)

    def other_model(self, noise=0.3):
        """Features of a model beside CLIP, which tells the classes apart more clearly."""
        draw = generator(50)
        centres = F.normalize(torch.randn(self.n_classes, 16, generator=draw), dim=1)
        noises = noise * torch.randn(len(self.classes), 16, generator=draw)
        return whiten(F.normalize(centres[self.classes] + noises, dim=1))

    def calibrated(self):
        """Calibrated zero-shot scores [N, C]: class means off, computed plainly."""
        scores = SCALE * self.features.double() @ self.texts.double().T
        return scores - scores.mean(dim=0)

    def zero_shot(self):
        """Zero-shot scores [N, C], computed plainly."""
        return SCALE * self.features.double() @ self.texts.double().T

    def adapted(self):
        """Scores [N, C] of the adapted classifier."""
        images = adapt(self.images())
        return images.adapted.logits(images.centred.double())

    def votes(self, seed=0):
        """Votes that err independently of the features."""
        return table_votes(self.vote_table(seed=seed))

    def vote_table(self, strength=6.0, noise=4.0, *, seed=0):
        """The table [N, C] of these votes."""
        table = noise * torch.randn(
            len(self.classes), self.n_classes, generator=generator(seed)
        )
        table += strength * F.one_hot(self.classes, self.n_classes)
        return table.double().softmax(dim=1)

    def captions(self, *, right=0.7, silent=0.0, seed=0):
        """Votes of captions whose features are near the text of the class, or of another class."""
        draw = generator(100 + seed)
        n = len(self.classes)
        swapped = torch.rand(n, generator=draw) >= right
        others = self.classes[torch.randperm(n, generator=draw)]
        named = torch.where(swapped, others, self.classes)
        noise = 0.15 * torch.randn(n, self.texts.shape[1], generator=draw)
        texts = F.normalize(self.texts[named] + noise, dim=1)
        row_of = torch.arange(n)
        row_of[torch.rand(n, generator=draw) < silent] = n
        return captions_of(texts, row_of, self.texts)

    def right(self, labels):
        """The share of the images that get their class."""
        return (labels == self.classes).double().mean().item()


def captions_of(texts, row_of, classes):
    """Votes by text features [U, D]; the row U stands for no caption."""
    nothing = torch.zeros(1, texts.shape[1])
    return caption_votes(torch.cat([texts, nothing]), row_of, classes, SCALE)


def on_disk(table):
    """The rows [N, D] of a tensor as FeatureMemmap."""
    rows = FeatureMemmap(*table.shape)
    rows[ALL] = table
    return rows


def table_votes(table):
    """Votes from a table [N, C]; a row of zeros is no vote."""
    table = table.double()
    return Votes(table.sum(dim=1) > 0, table.__getitem__)
