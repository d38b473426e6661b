"""LatteCLIP (arXiv 2410.08211), section 3: prototypes move towards mixed descriptions.

Letters: N training images, B batch, C classes, D embedding width, G group descriptions,
K kinds of text, M targets with labels.
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
    TokenizedTexts,
    TrainingBatch,
    TrainingTexts,
    text_classifier,
)

MARGIN_FLOOR = 1e-6


def maker(switches: Mapping[str, Any]) -> Maker:
    """Return LatteCLIP with the given switches.

    Raises:
        UserError: a switch is unknown, or the switches do not fit each other.
    """
    chosen = from_values(Switches, switches, "switches")
    return lambda texts, ids, seed: LatteClip(texts, ids, chosen, seed)


@dataclass(frozen=True)
class Switches:
    """The switches of LatteCLIP's ablations. Everything is on by default."""

    alpha: float = 0.01  # 1 - momentum of the targets
    class_description: bool = True
    image_description: bool = True
    group_description: bool = True
    mixer_weights: bool = True  # off: equal weights
    mixer_prototypes: str = "step"  # "epoch": compare with those of the epoch's start
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
    """Draws group descriptions of given classes, all of a class equally likely."""

    def __init__(self, labels: torch.Tensor, n_classes: int, seed: int) -> None:
        """Sort the groups by their class, given by labels [G]."""
        self.order = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=n_classes)  # [C]
        self.starts = self.counts.cumsum(0) - self.counts  # [C]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, labels: torch.Tensor) -> torch.Tensor:
        """Return a group index [B] for each class in `labels` [B].

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

    def __init__(
        self, texts: TokenizedTexts, ids: TrainingTexts, switches: Switches, seed: int
    ) -> None:
        self.texts, self.ids, self.switches = texts, ids, switches
        self.prototypes = text_classifier(texts, ids.classes)  # P [C, D]
        if ids.prototypes is not None:
            self.prototypes = ids.prototypes.to(self.prototypes)
        self.start = self.epoch_prototypes = self.prototypes
        self.groups = GroupSampler(ids.group_labels, len(ids.classes), seed)
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
            self.prototypes = text_classifier(self.texts, self.ids.classes)
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
        all_weights = []
        for name, labels, of_class, used in (
            ("zero_shot", zero_shot, classes[0], self.switches.zero_shot_loss),
            ("finetuned", finetuned, classes[1], self.switches.finetuned_loss),
        ):
            features = torch.cat([of_class[None], described])  # [3, B, D]
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
                all_weights.append(weights)
        weights = torch.cat(all_weights, dim=1)  # [3, B or 2 B]
        shares = (weights / weights.sum(dim=0)).mean(dim=1)
        logs |= dict(zip(("weight_class", "weight_image", "weight_group"), shares, strict=True))
        return StepOutcome(total, scores, logs)

    def _encode(
        self, batch: TrainingBatch, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class features [2, B, D] of two rows of labels [2, B], and descriptions [2, B, D].

        A description that is switched off is not encoded. Its features are those of the class,
        with weight 0.
        """
        classes = self._classes(labels)
        ids = [self.ids.classes[classes]]
        if self.switches.image_description:
            ids.append(self.ids.images[batch.index])
        if self.switches.group_description:
            ids.append(self.ids.groups[self.groups.draw(batch.pseudo_labels)])
        of_classes, *encoded = self.texts.encode(torch.cat(ids)).split([len(each) for each in ids])
        of_labels = of_classes[torch.searchsorted(devices.send(classes, labels.device), labels)]
        described = iter(encoded)
        return of_labels, torch.stack(
            [
                next(described) if used else of_labels[0]
                for used in (self.switches.image_description, self.switches.group_description)
            ]
        )

    def _classes(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the classes to encode for these labels, ascending, on the CPU.

        They are all classes if these are not more than the labels: to find the ones that occur
        would mean waiting for the GPU.
        """
        n = len(self.ids.classes)
        return torch.arange(n) if n <= labels.numel() else labels.unique().cpu()

    def _weights(self, features: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
        """Return weights [3, B] of the class, image and group descriptions."""
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
            "epoch_prototypes": self.epoch_prototypes,
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
        return text_classifier(self.texts, self.ids.classes)


@torch.no_grad()
def margins(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return w(u), the largest minus the second largest similarity to the prototypes, plus a floor.

    Args:
        features: [..., D] text features.
        prototypes: [C, D] with C >= 2.

    Returns:
        [...] weights, at least `MARGIN_FLOOR`.
    """
    best = (features @ prototypes.T).topk(2, dim=-1).values  # [..., 2]
    return best[..., 0] - best[..., 1] + MARGIN_FLOOR


def mix(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean over the kinds of text, with one weight per text per image.

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
    """Return z_i(y) = P_y + alpha (m_i(y) - P_y), the prototypes taken as constants.

    Args:
        prototypes: [C, D].
        labels: [B] class of each image.
        mixed: [B, D] mixed text features, with gradient.
        alpha: 1 - momentum.

    Returns:
        [B, D], with gradient through `mixed`.
    """
    start = prototypes.detach()[labels]  # [B, D]
    return start + alpha * (mixed - start)


@torch.no_grad()
def update(prototypes: torch.Tensor, labels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of each class's values, L2-normalised. A class that does not occur stays.

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
