"""LatteCLIP (arXiv 2410.08211), section 3: prototypes move towards mixed descriptions.

Letters: B batch, C classes, D width, G group descriptions, K kinds of text, M losses or targets.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from latteclip.config.keys import SwitchesSection
from latteclip.train.objectives import base

MARGIN_FLOOR = 1e-6


class GroupSampler:
    """Draws group descriptions, given the class of each [G]. All of a class are equally likely."""

    def __init__(self, labels: torch.Tensor, n_classes: int, seed: int) -> None:
        self.order = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=n_classes)  # [C]
        self.starts = self.counts.cumsum(0) - self.counts  # [C]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, labels: torch.Tensor) -> torch.Tensor:
        """Return a group index [B] for each class in `labels` [B], which all have groups."""
        uniform = torch.rand(
            len(labels), generator=self.generator, dtype=torch.float64
        )
        places = (uniform * self.counts[labels]).long()
        return self.order[self.starts[labels] + places]


class LatteClip(base.Objective):
    """LatteCLIP (arXiv 2410.08211), section 3."""

    STATE = ("prototypes", "epoch_prototypes")

    def __init__(
        self, texts: base.TrainingTexts, switches: SwitchesSection, seed: int
    ) -> None:
        super().__init__(texts)
        self.switches = switches
        self.prototypes = super().classifier()  # P [C, D]
        self.groups = GroupSampler(texts.group_labels, len(texts.classes), seed)

    def loss(self, batch: base.TrainingBatch) -> base.Outcome:
        switches = self.switches
        if not switches.prototypes:
            self.prototypes = super().classifier()
        scores = batch.features.detach() @ self.prototypes.T  # [B, C]
        labels = []  # [B] for each loss
        if switches.zero_shot_loss:
            labels.append(self.clip.send(batch.pseudo_labels))
        if switches.finetuned_loss:
            labels.append(scores.argmax(dim=1))
        classes, described = self._encode(batch, torch.stack(labels))
        against = self.prototypes
        if switches.mixer_prototypes == "epoch":
            against = self.epoch_prototypes
        total = batch.features.new_zeros(())
        # Labels [B] and targets [B, D] of this step, for each loss.
        self._moves: list[tuple[torch.Tensor, torch.Tensor]] = []
        for of_loss, of_classes in zip(labels, classes, strict=True):
            of_class = [of_classes] if switches.class_description else []
            features = torch.stack([*of_class, *described])  # [K, B, D]
            weights = torch.ones_like(features[..., :1])  # [K, B, 1]
            if switches.mixer_weights:
                weights = margins(features, against)
            # m(y) [B, D], not normalised
            target = (weights * features).sum(dim=0) / weights.sum(dim=0)
            if switches.prototypes:  # z(y) = P_y + alpha (m(y) - P_y)
                start = self.prototypes[of_loss]
                target = torch.lerp(start, target, switches.alpha)
            total = total + base.contrastive(batch.features, target, batch.scale)
            self._moves.append((of_loss, target.detach()))
        return total, scores

    def _encode(
        self, batch: base.TrainingBatch, labels: torch.Tensor
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Return class features [M, B, D] of labels [M, B], and those of descriptions [B, D]."""
        n = len(self.texts.classes)
        # To look for the classes that occur would wait for the GPU.
        classes = torch.arange(n) if n <= labels.numel() else labels.unique().cpu()
        ids = [self.texts.classes[classes]]
        if self.switches.image_description:
            ids.append(self.texts.images[batch.index])
        if self.switches.group_description:
            ids.append(self.texts.groups[self.groups.draw(batch.pseudo_labels)])
        encoded = self.texts.tokenized.encode(torch.cat(ids))
        of_classes, *described = encoded.split([*map(len, ids)])
        places = torch.searchsorted(self.clip.send(classes), labels)  # [M, B]
        return of_classes[places], described

    def after_step(self) -> None:
        """Move each class among the labels to the normalised mean of its targets."""
        if not self.switches.prototypes:
            return
        labels, values = map(torch.cat, zip(*self._moves, strict=True))
        sums = torch.zeros_like(self.prototypes).index_add_(0, labels, values)
        seen = torch.zeros(len(sums), 1, dtype=torch.bool, device=sums.device)
        self.prototypes = torch.where(
            seen.index_fill_(0, labels, True),
            F.normalize(sums, dim=-1),
            self.prototypes,
        )

    def start_epoch(self) -> None:
        self.epoch_prototypes = self.prototypes

    def state(self) -> dict[str, torch.Tensor]:
        return {**super().state(), "generator": self.groups.generator.get_state()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        super().restore(state)
        self.groups.generator.set_state(state["generator"])

    def classifier(self) -> torch.Tensor:
        return (
            self.prototypes if self.switches.prototypes else super().classifier()
        )


make = LatteClip


@torch.no_grad()
def margins(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return w(u) [..., 1] of features [..., D]: how much nearer the best prototype is."""
    best = (features @ prototypes.T).topk(2, dim=-1).values
    return MARGIN_FLOOR - best.diff(dim=-1)
