"""The section `clip`."""

from typing import Literal

from latteclip.config.sections.base import Line, Section, key


class ClipSection(Section):
    """The CLIP model that is adapted."""

    model: Line = key("ViT-B-32", "an open_clip name, hf-hub:<repo> or local-dir:<folder>")
    pretrained: Line | None = key(
        "laion2b_s34b_b79k",
        "open_clip tag or weights file; null: the weights of hf-hub: or local-dir:",
    )
    precision: Literal["bf16", "fp16", "float32"] = key(
        "bf16",
        "arithmetic on a GPU; bf16; fp16: for Turing cards; float32: as on a CPU",
    )
