"""The keys of a method that its training reads."""

from typing import Any, Literal

from latteclip.config.sections.base import Line, Section, inner, optional_key
from latteclip.config.sections.finetune import FinetuneSection


class TrainingSection(Section):
    """The objective of a training, its labels, and the classifier that it starts from and gives."""

    objective: Line = optional_key("what is optimised, if anything", default="zero_shot")
    pseudo_labels: Line = optional_key(
        "the training labels; all but zero_shot are not in the paper", default="zero_shot"
    )
    prototypes: Literal["text", "image"] = optional_key(
        "prototypes at the start, of class texts or (not in the paper) of images",
        default="text",
    )
    switches: dict[str, Any] = optional_key(
        "the switches of LatteCLIP, all on by default", default={}
    )
    finetune: FinetuneSection = inner(FinetuneSection, "keys of `finetune` for this method")
