"""The section `switches` of a method."""

from typing import Literal

from latteclip.config.sections.base import Section, ShareAboveZero, key


class SwitchesSection(Section):
    """The switches of LatteCLIP, all on by default."""

    alpha: ShareAboveZero = key(0.01, "1 - momentum of the targets")
    class_description: bool = key(True, "mix in the class description")
    image_description: bool = key(True, "mix in the image description")
    group_description: bool = key(True, "mix in the group description")
    mixer_weights: bool = key(True, "off: equal weights")
    mixer_prototypes: Literal["step", "epoch"] = key(
        "step",
        "prototypes by which texts are weighted: of the step, or of the epoch's start",
    )
    zero_shot_loss: bool = key(True, "the loss on zero-shot pseudo-labels")
    finetuned_loss: bool = key(True, "the loss on the tuned model's pseudo-labels")
    prototypes: bool = key(
        True, "off: the target is the mix, and the classifier is the class texts"
    )
