"""Settings of a training: typed sections of the configuration."""

import math
from dataclasses import dataclass
from typing import Any

from latteclip.config.keys import (
    AUTO,
    ClassTextsSection,
    ClipSection,
    FinetuneSection,
    MethodSection,
)
from latteclip.core.class_templates import ClassTemplates

GROUND_TRUTH = "ground_truth"
# The paper's code rounds the steps of an epoch up to a multiple of the 3 workers of open_clip's
# WebDataset loader.
STEPS_MULTIPLE = 3


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the batches that hold n images, the last one filled up, and then up to a multiple."""
    batches = math.ceil(n / batch_size)
    return math.ceil(batches / STEPS_MULTIPLE) * STEPS_MULTIPLE


def auto_batch_size(n: int) -> int:
    """Return the batch size for N images: the power of two next to N / 16, from 64 to 512."""
    exponent = round(math.log2(max(1, n) / 16))
    return 1 << min(9, max(6, exponent))


def auto_epochs(n: int) -> int:
    """Return the epochs for N images: 5 from 320 to 5,000, below up to 15, above down to 3."""
    many = min(5, round(5 * math.cbrt(5_000 / max(1, n))))
    few = min(15, round(1_600 / max(1, n)))
    return max(3, many, few)


def auto_warmup_steps(steps: int) -> int:
    """Return the warm-up for a training of so many steps: a tenth, at most 50."""
    return min(50, steps // 10)


@dataclass(frozen=True)
class Recipe:
    """The section `finetune` with a number for each "auto" (LatteCLIP, section 4)."""

    epochs: int
    warmup_steps: int
    batch_size: int
    lr: float

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of a step, counted from 0, of `total` steps."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


def recipe_for(
    section: FinetuneSection, n: int, lr: float | None = None
) -> Recipe:
    """Return the numbers of a training on n images, with `lr` in place of "auto"."""
    found = {"batch_size": auto_batch_size(n), "epochs": auto_epochs(n), "lr": lr}
    given = {key: value for key, value in section if value != AUTO}
    numbers: dict[str, Any] = {**found, **given}
    steps = numbers["epochs"] * steps_per_epoch(n, numbers["batch_size"])
    return Recipe(**{"warmup_steps": auto_warmup_steps(steps), **numbers})


class FinetuneSettings(ClassTextsSection):
    """What decides a fine-tuned model, besides its inputs, its fold and its seed."""

    clip: ClipSection
    method: MethodSection
    module: str  # of latteclip/train/objectives
    # Keys of `core.tables.FLAGS`
    flags: list[str]

    @property
    def class_templates(self) -> ClassTemplates:
        """The templates, of which training uses the first, and synonyms of the classes."""
        return ClassTemplates.of(self.template, self.class_synonyms)

    @property
    def labels(self) -> str:
        return (
            GROUND_TRUTH
            if "supervised" in self.flags
            else self.method.pseudo_labels
        )


@dataclass
class TrainingMetadata:
    """The metadata of HISTORY."""

    model: str  # the name of the CLIP model
    pretrained: str | None
    labels: str  # as `FinetuneSettings.labels`
    recipe: Recipe
    flags: list[str]  # keys of `core.tables.FLAGS`
    # Image_ids of answered images that were left out, because they check labels.
    drawn: list[str]
    identity: str  # digest of all that decides the result
    averaged: int | None = None  # trainings; None: this is one training
