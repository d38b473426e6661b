"""A tiny CLIP with texts and a batch, for the tests of objectives."""

import torch
from support import reference
from support.tiny import SIDE, TEMPLATE, tiny_clip

from latteclip.clip import encode
from latteclip.config.keys import SwitchesSection
from latteclip.core.class_templates import class_texts
from latteclip.train.objectives.base import TokenizedTexts, TrainingBatch, TrainingTexts
from latteclip.train.objectives.latteclip import GroupSampler, LatteClip

SHAPES = [(5, 7, 11), (6, 4, 9), (3, 13, 8)]  # B, C, N
WORDS = (
    *("red", "fine", "coarse", "woven", "soft", "thin", "bold"),
    *("dots", "lines", "cells", "x"),
)


class Case:
    """A tiny CLIP, N images with random pseudo-labels and descriptions, and one batch of B."""

    def __init__(self, b, c, n, seed=0):
        self.clip = tiny_clip(seed)
        generator = torch.Generator().manual_seed(seed)

        def text():
            length = int(torch.randint(1, 13, (), generator=generator))
            picks = torch.randint(len(WORDS), (length,), generator=generator)
            return " ".join(WORDS[pick] for pick in picks)

        self.classnames = [f"{WORDS[i % len(WORDS)]} {i}" for i in range(c)]
        self.labels = torch.randint(c, (n,), generator=generator)
        self.image_texts = [text() for _ in range(n)]
        self.group_texts = [text() for _ in range(n)]
        self.class_texts = class_texts(TEMPLATE, self.classnames)
        self.index = torch.randperm(n, generator=generator)[:b]
        self.all_images = torch.randn(n, 3, SIDE, SIDE, generator=generator)
        bank = TokenizedTexts(self.clip)
        ids = map(bank.add, (self.class_texts, self.image_texts, self.group_texts))
        self.texts = TrainingTexts(bank, *ids, self.labels)
        self.draws, self.seed = GroupSampler(self.labels, c, seed), seed

    @property
    def images(self):
        return self.all_images[self.index]

    def latteclip(self, **switches):
        return LatteClip(self.texts, SwitchesSection(**switches), self.seed)

    def batch(self):
        features = encode.encode_images(self.clip, self.images)
        return TrainingBatch(
            self.index, self.labels[self.index], features, self.clip.model.logit_scale.exp()
        )

    def reference_texts(self):
        """The texts of the batch, with the groups that a sampler of the same seed draws."""
        drawn = self.draws.draw(self.labels[self.index]).tolist()
        return reference.Texts(
            self.class_texts,
            [self.image_texts[i] for i in self.index.tolist()],
            [self.group_texts[group] for group in drawn],
        )

    def class_rows(self):
        rows = reference.class_features(self.clip, self.class_texts)
        return [row.detach() for row in rows]

    def reference_step(self, now, epoch_start, switches):
        """A step of LatteCLIP, or of FLYP if there are no switches."""
        labels = self.labels[self.index].tolist()
        given = self.clip, self.images, labels, self.reference_texts()
        if switches is None:
            return reference.flyp(*given, epoch_start)
        return reference.latteclip(*given, now, epoch_start, reference.Switches(**switches))

    def gradients(self, loss):
        return torch.autograd.grad(
            loss,
            list(self.clip.model.parameters()),
            allow_unused=True,
            materialize_grads=True,
        )

    def assert_same_gradients(self, loss, wanted_loss):
        names = [name for name, _ in self.clip.model.named_parameters()]
        for name, gradient, wanted in zip(
            names, self.gradients(loss), self.gradients(wanted_loss), strict=True
        ):
            # Float32 sums of many terms: small entries err by as much as the largest ones.
            tolerance = 5e-5 * wanted.abs().max().item()
            torch.testing.assert_close(
                gradient,
                wanted,
                rtol=1e-5,
                atol=max(tolerance, 1e-9),
                msg=lambda m, n=name: n + m,
            )


def assert_same_rows(tensor, rows):
    torch.testing.assert_close(tensor, torch.stack(rows), rtol=1e-5, atol=1e-6)
