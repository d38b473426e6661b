"""LatteCLIP (arXiv 2410.08211), section 3: mixed descriptions pull prototypes along.

Letters: N training images, B batch, C classes, D embedding width, G group descriptions,
K kinds of text, M labelled targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.settings import from_values
from latteclip.train.objectives import base
from latteclip.train.objectives.base import (
    Maker,
    StepOutcome,
    TextBank,
    TrainingBatch,
    TrainingTexts,
    text_classifier,
)

MARGIN_FLOOR = 1e-6


def maker(switches: Mapping[str, Any]) -> Maker:
    """LatteCLIP with the given switches.

    Raises:
        UserError: a switch is unknown, or the switches do not fit each other.
    """
    chosen = from_values(Switches, switches, "switches")
    return lambda bank, texts, seed: LatteClip(bank, texts, chosen, seed)


@dataclass(frozen=True)
class Switches:
    """The switches of LatteCLIP's ablations; everything is on by default."""

    alpha: float = 0.01  # 1 - momentum of the targets
    class_description: bool = True
    image_description: bool = True
    group_description: bool = True
    mixer_weights: bool = True  # off: equal weights
    mixer_prototypes: str = "step"  # "epoch": weigh against those of the epoch's start
    zero_shot_loss: bool = True
    finetuned_loss: bool = True
    prototypes: bool = True  # off: the target is the mix, the classifier f_txt(T(c))

    def __post_init__(self) -> None:
        if not (self.class_description or self.image_description or self.group_description):
            raise UserError("LatteCLIP needs at least one kind of description; switch one on.")
        if not (self.zero_shot_loss or self.finetuned_loss):
            raise UserError("LatteCLIP needs at least one of its two losses; switch one on.")
        if self.mixer_prototypes not in ("step", "epoch"):
            raise UserError(f"mixer_prototypes is step or epoch, not {self.mixer_prototypes!r}.")


class GroupSampler:
    """Draws a group description of a given class, each of them equally likely."""

    def __init__(self, labels: torch.Tensor, n_classes: int, seed: int) -> None:
        """labels: [G] class of each group."""
        self.order = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=n_classes)  # [C]
        self.starts = self.counts.cumsum(0) - self.counts  # [C]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, labels: torch.Tensor) -> torch.Tensor:
        """One group index [B] for each class in `labels` [B].

        Raises:
            UserError: a class has no group.
        """
        counts = self.counts[labels]
        if not bool((counts > 0).all()):
            lacking = labels[counts == 0].unique().tolist()
            raise UserError(
                f"No group description for the pseudo-labels {lacking}; the captions do not belong "
                "to these pseudo-labels: delete captions/groups.parquet and rerun."
            )
        uniform = torch.rand(len(labels), generator=self.generator, dtype=torch.float64)
        return self.order[self.starts[labels] + (uniform * counts).long()]


class LatteClip:
    """LatteCLIP (arXiv 2410.08211), section 3."""

    def __init__(self, bank: TextBank, texts: TrainingTexts, switches: Switches, seed: int) -> None:
        self.bank, self.texts, self.switches = bank, texts, switches
        self.prototypes = text_classifier(bank, texts.classes)  # P [C, D]
        if texts.prototypes is not None:
            self.prototypes = texts.prototypes.to(self.prototypes)
        self.start = self.epoch_prototypes = self.prototypes
        self.groups = GroupSampler(texts.group_labels, len(texts.classes), seed)
        kinds = (
            switches.class_description,
            switches.image_description,
            switches.group_description,
        )
        self.used = torch.tensor(kinds, device=self.prototypes.device)[:, None]  # [3, 1]
        self._labels: list[torch.Tensor] = []  # of this step's targets, [B] each
        self._targets: list[torch.Tensor] = []  # [B, D] each

    def loss(self, batch: TrainingBatch) -> StepOutcome:
        if not self.switches.prototypes:
            self.prototypes = text_classifier(self.bank, self.texts.classes)
        device = batch.features.device
        zero_shot = devices.send(batch.pseudo_labels, device)  # [B]
        scores = batch.features.detach() @ self.prototypes.T  # [B, C]
        finetuned = scores.argmax(dim=1)  # [B]
        classes, described = self._encode(batch, torch.stack([zero_shot, finetuned]))
        against = (
            self.epoch_prototypes if self.switches.mixer_prototypes == "epoch" else self.prototypes
        )
        total = batch.features.new_zeros(())
        logs = {"prototype_drift": 1 - (self.prototypes * self.start).sum(dim=1).mean()}
        self._labels, self._targets = [], []
        weighed = []
        for name, labels, own, used in (
            ("zero_shot", zero_shot, classes[0], self.switches.zero_shot_loss),
            ("finetuned", finetuned, classes[1], self.switches.finetuned_loss),
        ):
            features = torch.cat([own[None], described])  # [3, B, D]
            weights = self._weights(features, against)  # [3, B]
            mixed = mix(features, weights)  # [B, D]
            target = (
                targets(self.prototypes, labels, mixed, self.switches.alpha)
                if self.switches.prototypes
                else mixed
            )
            if used:
                part = base.contrastive(batch.features, target, batch.scale)
                total = total + part
                logs[f"loss_{name}"] = part.detach()
                self._labels.append(labels)
                self._targets.append(target.detach())
                weighed.append(weights)
        weights = torch.cat(weighed, dim=1)  # [3, B or 2 B]
        shares = (weights / weights.sum(dim=0)).mean(dim=1)
        logs |= dict(zip(("weight_class", "weight_image", "weight_group"), shares, strict=True))
        return StepOutcome(total, scores, logs)

    def _encode(
        self, batch: TrainingBatch, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class features [2, B, D] of two rows of labels [2, B]; descriptions [2, B, D].

        A description that is switched off is not encoded; its features are those of the class,
        at weight 0.
        """
        classes = self._classes(labels)
        ids = [self.texts.classes[classes]]
        if self.switches.image_description:
            ids.append(self.texts.images[batch.index])
        if self.switches.group_description:
            ids.append(self.texts.groups[self.groups.draw(batch.pseudo_labels)])
        of_classes, *encoded = self.bank.encode(torch.cat(ids)).split([len(each) for each in ids])
        own = of_classes[torch.searchsorted(devices.send(classes, labels.device), labels)]
        described = iter(encoded)
        return own, torch.stack(
            [
                next(described) if used else own[0]
                for used in (self.switches.image_description, self.switches.group_description)
            ]
        )

    def _classes(self, labels: torch.Tensor) -> torch.Tensor:
        """The classes that are encoded for these labels, ascending, on the CPU.

        All of them, while they are not more than the labels: to see which ones occur, a GPU would
        be waited for.
        """
        n = len(self.texts.classes)
        return torch.arange(n) if n <= labels.numel() else labels.unique().cpu()

    def _weights(self, features: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
        """Weights [3, B] of the class, image and group descriptions."""
        if not self.switches.mixer_weights:
            return self.used.expand(features.shape[:2]).float()
        return self.used * margins(features, against)

    def after_step(self) -> None:
        """Move the prototypes of the classes that occurred in the step."""
        if self.switches.prototypes:
            self.prototypes = update(
                self.prototypes, torch.cat(self._labels), torch.cat(self._targets)
            )

    def start_epoch(self) -> None:
        self.epoch_prototypes = self.prototypes

    def state(self) -> dict[str, torch.Tensor]:
        return {
            "prototypes": self.prototypes,
            "start": self.start,
            # A copy: it may be one tensor with another of these.
            "epoch_prototypes": self.epoch_prototypes.clone(),
            "generator": self.groups.generator.get_state(),
        }

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        device = self.prototypes.device
        self.prototypes, self.start = state["prototypes"].to(device), state["start"].to(device)
        self.epoch_prototypes = state["epoch_prototypes"].to(device)
        self.groups.generator.set_state(state["generator"])

    def classifier(self) -> torch.Tensor:
        if self.switches.prototypes:
            return self.prototypes
        return text_classifier(self.bank, self.texts.classes)


@torch.no_grad()
def margins(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """w(u): the largest minus the second largest similarity to the prototypes, plus a floor.

    Args:
        features: [..., D] text features.
        prototypes: [C, D] with C >= 2.

    Returns:
        [...] weights, at least `MARGIN_FLOOR`.
    """
    best = (features @ prototypes.T).topk(2, dim=-1).values  # [..., 2]
    return best[..., 0] - best[..., 1] + MARGIN_FLOOR


def mix(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the kinds of text: one weight per text per image.

    Args:
        features: [K, B, D].
        weights: [K, B], not negative; each image has a positive one.

    Returns:
        [B, D], not normalised.
    """
    return (weights[:, :, None] * features).sum(dim=0) / weights.sum(dim=0)[:, None]


def targets(
    prototypes: torch.Tensor, labels: torch.Tensor, mixed: torch.Tensor, alpha: float
) -> torch.Tensor:
    """z_i(y) = P_y + alpha (m_i(y) - P_y), the prototypes taken as constants.

    Args:
        prototypes: [C, D].
        labels: [B] class of each image.
        mixed: [B, D] mixed text features, with gradient.
        alpha: 1 - momentum.

    Returns:
        [B, D], with gradient through `mixed`.
    """
    own = prototypes.detach()[labels]  # [B, D]
    return own + alpha * (mixed - own)


@torch.no_grad()
def update(prototypes: torch.Tensor, labels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean of each class's values, L2-normalised; a class that does not occur stays.

    Args:
        prototypes: [C, D] float32.
        labels: [M] class of each value.
        values: [M, D].

    Returns:
        New prototypes [C, D].
    """
    sums = torch.zeros_like(prototypes).index_add_(0, labels, values.detach().float())
    counts = prototypes.new_zeros(len(prototypes))  # [C]; `bincount` would wait for a GPU
    seen = counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype)) > 0
    # The length of a sum does not matter: normalise(sum) == normalise(mean).
    return torch.where(seen[:, None], F.normalize(sums, dim=-1), prototypes)
