"""What the history of a training says of it."""

from dataclasses import dataclass

from latteclip.train.settings import Recipe


@dataclass
class TrainingMetadata:
    """The metadata of HISTORY."""

    model: str  # the name of the CLIP model
    pretrained: str | None
    objective: str
    labels: str  # as `FinetuneSettings.labels`
    recipe: Recipe
    found: list[str]  # keys of the recipe that were "auto"
    seed: int
    flags: list[str]  # keys of `core.metadata.FLAGS`
    # Image_ids of answered images that were left out, because they check labels.
    drawn: list[str]
    identity: str  # digest of all that decides the result
    averaged: int | None = None  # trainings; None: this is one training
