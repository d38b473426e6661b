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
        # Labels [B] and targets [B, D] of this step, for each loss.
        self._moves: list[tuple[torch.Tensor, torch.Tensor]] = []

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
        self._moves = []
        for of_loss, of_classes in zip(labels, classes, strict=True):
            of_class = [of_classes] if switches.class_description else []
            features = torch.stack([*of_class, *described])  # [K, B, D]
            weights = torch.ones_like(features[..., 0])  # [K, B]
            if switches.mixer_weights:
                weights = margins(features, against)
            target = mix(features, weights)  # [B, D]
            if switches.prototypes:
                target = targets(self.prototypes, of_loss, target, switches.alpha)
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
        if self.switches.prototypes:
            labels, values = map(torch.cat, zip(*self._moves, strict=True))
            self.prototypes = update(self.prototypes, labels, values)

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
    """Return w(u) [...] of features [..., D]: how much nearer the best prototype is than others."""
    first, second = (features @ prototypes.T).topk(2, dim=-1).values.unbind(-1)
    return first - second + MARGIN_FLOOR


def mix(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean [B, D] of features [K, B, D], not normalised, by weights [K, B]."""
    return (weights[:, :, None] * features).sum(dim=0) / weights.sum(dim=0)[
        :, None
    ]


def targets(
    prototypes: torch.Tensor,
    labels: torch.Tensor,
    mixed: torch.Tensor,
    alpha: float,
) -> torch.Tensor:
    """Return z_i(y) = P_y + alpha (m_i(y) - P_y) [B, D], with gradient through m [B, D] alone."""
    start = prototypes.detach()[labels]  # [B, D]
    return start + alpha * (mixed - start)


@torch.no_grad()
def update(
    prototypes: torch.Tensor, labels: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Return prototypes [C, D], of classes among the labels [M] the normalised mean value [D]."""
    sums = torch.zeros_like(prototypes).index_add_(
        0, labels, values.detach().float()
    )
    # [C]; `bincount` would wait for a GPU.
    counts = prototypes.new_zeros(len(prototypes))
    seen = (
        counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        > 0
    )
    return torch.where(seen[:, None], F.normalize(sums, dim=-1), prototypes)
