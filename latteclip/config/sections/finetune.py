"""The section `finetune`."""

from typing import Annotated

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

BatchSize = Annotated[int, Field(ge=2)]


class FinetuneSection(Section):
    """The optimiser: AdamW with linear warm-up and cosine decay."""

    epochs: Positive | Auto = key(
        50, "passes over the training images; auto: by their number"
    )
    warmup_steps: Natural | Auto = key(
        10, "steps of linear warm-up; auto: a tenth, at most 50"
    )
    batch_size: BatchSize | Auto = key(512, "images per step; auto: by their number")
    lr: AboveZero | Auto = key(
        1e-7, "learning rate after the warm-up; auto: find_learning_rate finds it"
    )
    weight_decay: AtLeastZero = key(0.2, "AdamW's weight decay, on matrices")
