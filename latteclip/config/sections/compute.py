"""The section `compute`."""

from latteclip.config.sections.base import AUTO, AtLeastZero, Auto, Positive, Section, key


class ComputeSection(Section):
    """How fine-tuning is computed: speed and memory, not results."""

    cache_gib: AtLeastZero = key(
        4, "GiB in memory for decoded images; more are on disk, if they fit"
    )
    micro_batch: Positive | Auto | None = key(
        AUTO,
        "images encoded at once; auto: what fits; null: all; the loss compares the whole batch",
    )
    gradient_checkpointing: bool = key(
        False, "recompute activations: less memory, more time"
    )
    compile: bool = key(False, "torch.compile the towers")
    checkpoint_minutes: AtLeastZero = key(
        10,
        "minutes between checkpoints; 0: one for every epoch; a killed run resumes from the last",
    )
