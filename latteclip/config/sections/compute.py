"""The section `compute`."""

from latteclip.config.sections.base import AUTO, AtLeastZero, Auto, Positive, Section, key


class ComputeSection(Section):
    """How fine-tuning is computed: speed and memory, not results."""

    micro_batch: Positive | Auto | None = key(
        AUTO,
        "images of a batch encoded at once; auto: what fits into a GPU, or 4 GiB of activations; "
        "null: all; the result is the same",
    )
    checkpoint_minutes: AtLeastZero = key(
        10,
        "minutes between checkpoints, from which a killed run resumes; 0: one for every epoch",
    )
