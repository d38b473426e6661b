"""What a method optimises: its text targets, its losses and its classifier.

The training loop knows only `Objective`. Letters: N training images, B batch, C classes,
D embedding width, G group descriptions.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from latteclip.core.errors import UserError
from latteclip.train.objectives import losses, mixer, prototypes
from latteclip.train.texts import TextBank


@dataclass(frozen=True)
class TrainingTexts:
    """Ids in a `TextBank` of every text that a method may use."""

    classes: torch.Tensor  # [C] class descriptions T(c)
    images: torch.Tensor  # [N] image descriptions; empty where the method does without
    groups: torch.Tensor  # [G] group descriptions; empty where the method does without
    group_labels: torch.Tensor  # [G] the pseudo-label that each group was drawn from


@dataclass(frozen=True)
class Batch:
    """One step's images."""

    index: torch.Tensor  # [B] rows of the training images, on the CPU
    pseudo_labels: torch.Tensor  # [B] frozen labels: zero-shot ones by default, on the CPU
    features: torch.Tensor  # [B, D] image features, with gradient
    scale: torch.Tensor  # exp(logit_scale), with gradient


@dataclass(frozen=True)
class Outcome:
    """What an objective says of a batch."""

    loss: torch.Tensor  # the scalar to minimise
    scores: torch.Tensor  # [B, C] cosines to the classifier that the objective has at hand
    logs: dict[str, torch.Tensor]  # detached scalars for the history


class Objective(Protocol):
    """One method."""

    def loss(self, batch: Batch) -> Outcome:
        """The loss of a batch, and what there is to see of it."""

    def after_step(self) -> None:
        """Called once after each optimiser step."""

    def start_epoch(self) -> None:
        """Called before the first step of each epoch."""

    def state(self) -> dict[str, torch.Tensor]:
        """What outlives a step beside the model, by name."""

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state`."""

    def classifier(self) -> torch.Tensor:
        """The classifier [C, D] of the model as it is now."""


@torch.no_grad()
def text_classifier(bank: TextBank, classes: torch.Tensor) -> torch.Tensor:
    """f_txt(T(c)) of the current model, [C, D]."""
    return bank.encode(classes)


class Flyp:
    """FLYP (Goyal et al. 2023) on given labels: L(v, f_txt(T(y))).

    Its scores are those of the class texts at the epoch's start.
    """

    def __init__(self, bank: TextBank, texts: TrainingTexts) -> None:
        self.bank, self.texts = bank, texts
        self.start_epoch()

    def loss(self, batch: Batch) -> Outcome:
        targets = self.bank.encode(self.texts.classes[batch.pseudo_labels])  # [B, D]
        loss = losses.contrastive(batch.features, targets, batch.scale)
        scores = batch.features.detach() @ self.epoch_classifier.T
        return Outcome(loss, scores, {"loss_zero_shot": loss.detach()})

    def after_step(self) -> None:
        """Nothing is learned beside the model."""

    def start_epoch(self) -> None:
        self.epoch_classifier = self.classifier()  # [C, D]

    def state(self) -> dict[str, torch.Tensor]:
        return {"epoch_classifier": self.epoch_classifier}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.epoch_classifier = state["epoch_classifier"].to(self.epoch_classifier.device)

    def classifier(self) -> torch.Tensor:
        return text_classifier(self.bank, self.texts.classes)


@dataclass(frozen=True)
class LatteClipSettings:
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

    def __init__(
        self, bank: TextBank, texts: TrainingTexts, settings: LatteClipSettings, seed: int
    ) -> None:
        self.bank, self.texts, self.settings = bank, texts, settings
        self.prototypes = text_classifier(bank, texts.classes)  # P [C, D]
        self.start = self.epoch_prototypes = self.prototypes
        self.groups = GroupSampler(texts.group_labels, len(texts.classes), seed)
        self._labels: list[torch.Tensor] = []  # of this step's targets, [B] each
        self._targets: list[torch.Tensor] = []  # [B, D] each

    def loss(self, batch: Batch) -> Outcome:
        if not self.settings.prototypes:
            self.prototypes = text_classifier(self.bank, self.texts.classes)
        device = batch.features.device
        zero_shot = batch.pseudo_labels  # [B]
        scores = batch.features.detach() @ self.prototypes.T  # [B, C]
        finetuned = scores.argmax(dim=1).cpu()  # [B]
        classes, described = self._encode(batch, torch.stack([zero_shot, finetuned]))
        against = (
            self.epoch_prototypes if self.settings.mixer_prototypes == "epoch" else self.prototypes
        )
        total = batch.features.new_zeros(())
        logs = {"prototype_drift": 1 - (self.prototypes * self.start).sum(dim=1).mean()}
        self._labels, self._targets = [], []
        weighed = []
        for name, labels, own, used in (
            ("zero_shot", zero_shot.to(device), classes[0], self.settings.zero_shot_loss),
            ("finetuned", finetuned.to(device), classes[1], self.settings.finetuned_loss),
        ):
            features = torch.cat([own[None], described])  # [3, B, D]
            weights = self._weights(features, against)  # [3, B]
            mixed = mixer.mix(features, weights)  # [B, D]
            target = (
                prototypes.targets(self.prototypes, labels, mixed, self.settings.alpha)
                if self.settings.prototypes
                else mixed
            )
            if used:
                part = losses.contrastive(batch.features, target, batch.scale)
                total = total + part
                logs[f"loss_{name}"] = part.detach()
                self._labels.append(labels)
                self._targets.append(target.detach())
                weighed.append(weights)
        weights = torch.cat(weighed, dim=1)  # [3, B or 2 B]
        shares = (weights / weights.sum(dim=0)).mean(dim=1)
        logs |= dict(zip(("weight_class", "weight_image", "weight_group"), shares, strict=True))
        return Outcome(total, scores, logs)

    def _encode(self, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class features [2, B, D] of two rows of labels [2, B]; descriptions [2, B, D].

        A description that is switched off is not encoded; its features are those of the class,
        at weight 0.
        """
        ids = [self.texts.classes[labels[0]], self.texts.classes[labels[1]]]
        if self.settings.image_description:
            ids.append(self.texts.images[batch.index])
        if self.settings.group_description:
            ids.append(self.texts.groups[self.groups.draw(labels[0])])
        features = self.bank.encode(torch.stack(ids))  # [2 to 4, B, D]
        described = iter(features[2:])
        return features[:2], torch.stack(
            [
                next(described) if used else features[0]
                for used in (self.settings.image_description, self.settings.group_description)
            ]
        )

    def _weights(self, features: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
        """Weights [3, B] of the class, image and group descriptions."""
        used = torch.tensor(
            [
                self.settings.class_description,
                self.settings.image_description,
                self.settings.group_description,
            ],
            device=features.device,
        )[:, None]
        if not self.settings.mixer_weights:
            return used.expand(features.shape[:2]).float()
        return used * mixer.margins(features, against)

    def after_step(self) -> None:
        """Move the prototypes of the classes that occurred in the step."""
        if self.settings.prototypes:
            self.prototypes = prototypes.update(
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
        if self.settings.prototypes:
            return self.prototypes
        return text_classifier(self.bank, self.texts.classes)
