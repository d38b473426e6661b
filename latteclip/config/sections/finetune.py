"""The section `finetune`."""

from typing import Annotated, Literal

from pydantic import Field

from latteclip.config.sections.base import (
    AboveZero,
    AtLeastZero,
    Auto,
    Natural,
    Positive,
    Section,
    key,
)

Decay = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2)]


class FinetuneSection(Section):
    """The optimiser: AdamW with linear warm-up and cosine decay."""

    epochs: Positive | Auto = key(
        50, "passes over the training images; auto: by their number"
    )
    warmup_steps: Natural | Auto = key(
        10, "steps of linear warm-up; auto: a tenth, at most 50"
    )
    steps_multiple_of: Positive = key(
        1, "steps of an epoch are rounded up to a multiple of this, 3 in the paper's code"
    )
    batch_size: BatchSize | Auto = key(512, "images per step; auto: by their number")
    lr: AboveZero | Auto = key(
        1e-7, "learning rate after the warm-up; auto: find_learning_rate finds it"
    )
    beta1: Decay = key(0.9, "AdamW's first decay")
    beta2: Decay = key(0.98, "AdamW's second decay")
    eps: AboveZero = key(1e-6, "AdamW's epsilon")
    weight_decay: AtLeastZero = key(0.2, "AdamW's weight decay, on matrices")
    batch_norm: Literal["frozen", "train"] = key(
        "frozen",
        "statistics of BatchNorm; frozen: those of pretraining; train: of the batches",
    )
