"""Settings of a training: typed sections of the configuration."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from latteclip.core.class_templates import ClassTemplates
from latteclip.core.holdout import NO_FOLD, Fold

Auto = Literal["auto"]
AUTO: Auto = "auto"
GROUND_TRUTH = "ground_truth"
FROZEN = "frozen"


def steps_per_epoch(n: int, batch_size: int, multiple: int = 1) -> int:
    """Return the batches that hold n images, the last one filled up, and then up to a multiple."""
    batches = math.ceil(n / batch_size)
    return math.ceil(batches / multiple) * multiple


def auto_batch_size(n: int) -> int:
    """Return the batch size for N images: the power of two next to N / 16, from 64 to 512."""
    exponent = round(math.log2(max(1, n) / 16))
    return min(512, max(64, int(2.0**exponent)))


def auto_epochs(n: int) -> int:
    """Return the epochs for N images: 10 from 320 to 5,000, below up to 30, above down to 3."""
    many = min(10, round(10 * math.cbrt(5_000 / max(1, n))))
    few = min(30, round(3_200 / max(1, n)))
    return max(3, many, few)


def auto_warmup_steps(steps: int) -> int:
    """Return the warm-up for a training of so many steps: a tenth, at most 50."""
    return min(50, steps // 10)


@dataclass(frozen=True)
class Finetune:
    """The section `finetune`: AdamW, linear warm-up, cosine decay (LatteCLIP, section 4).

    "auto" follows from the number of training images, or is the rate of `find_learning_rate`.
    """

    epochs: int | Auto
    warmup_steps: int | Auto
    batch_size: int | Auto
    steps_multiple_of: int  # of an epoch's steps
    lr: float | Auto
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    # Statistics of pretraining or of batches, which change the features at any learning rate.
    batch_norm: Literal["frozen", "train"]

    def recipe(self, n: int, lr: float | None = None) -> "Recipe":
        """Return the numbers of a training on n images, with `lr` in place of "auto"."""
        found: dict[str, Any] = {key: each for key, each in vars(self).items() if each != AUTO}
        size = found.setdefault("batch_size", auto_batch_size(n))
        epochs = found.setdefault("epochs", auto_epochs(n))
        steps = epochs * steps_per_epoch(n, size, self.steps_multiple_of)
        return Recipe(**{"warmup_steps": auto_warmup_steps(steps), "lr": lr, **found})


@dataclass(frozen=True)
class Recipe(Finetune):
    """The section with a number for each "auto"."""

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

    def steps_per_epoch(self, n: int) -> int:
        return steps_per_epoch(n, self.batch_size, self.steps_multiple_of)


@dataclass(frozen=True)
class Compute:
    """The section `compute`. It changes no result, up to rounding."""

    compile: bool = False
    gradient_checkpointing: bool = False
    micro_batch: int | Literal["auto"] | None = "auto"  # encoded at once. None: the whole batch
    cache_gib: float = 0.0  # of images cached in memory; the others on disk
    checkpoint_minutes: float = 10  # until the next one is due


@dataclass(frozen=True)
class FinetuneSettings:
    """What decides a fine-tuned model, besides its inputs and its seed."""

    model: str
    pretrained: str | None
    template: str | list[str]
    objective: str  # module of `objectives`
    finetune: Finetune
    precision: str = "bf16"
    is_supervised: bool = False  # whether true labels take the place of pseudo-labels
    pseudo_labels: str = "zero_shot"  # or what adapt_zero_shot or fuse_labels makes
    prototypes: str = "text"  # that LatteCLIP starts from: text or image
    head: str = "tuned"  # the classifier after training: tuned, or refit to the features
    switches: dict[str, Any] = field(default_factory=dict)  # of the objective, which validates them
    compute: Compute = Compute()
    class_synonyms: dict[str, list[str]] = field(default_factory=dict)
    fold: Fold = NO_FOLD  # images that are left out, for `select_model`

    @property
    def class_templates(self) -> ClassTemplates:
        """The templates, of which training uses the first, and synonyms of the classes."""
        return ClassTemplates.of(self.template, self.class_synonyms)

    @property
    def labels(self) -> str:
        return GROUND_TRUTH if self.is_supervised else self.pseudo_labels
