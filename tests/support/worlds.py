"""Images, class texts and votes of which the classes are known, made from random numbers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

SCALE = 30.0


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

    def other_model(self, noise=0.3):
        """Features of a model beside CLIP, which tells the classes apart more clearly."""
        draw = generator(50)
        centres = F.normalize(torch.randn(self.n_classes, 16, generator=draw), dim=1)
        noises = noise * torch.randn(len(self.classes), 16, generator=draw)
        return F.normalize(centres[self.classes] + noises, dim=1)

    def zero_shot(self):
        """Zero-shot scores [N, C], computed plainly."""
        return SCALE * self.features.double() @ self.texts.double().T

    def right(self, labels):
        """The share of the images that get their class."""
        return (labels == self.classes).double().mean().item()
