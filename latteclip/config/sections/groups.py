"""The section `groups`."""

from typing import Literal

from latteclip.config.sections.base import Natural, Pixels, Positive, Section, key


class GroupsSection(Section):
    """Group captions: four images of a pseudo-label, one group for every image."""

    seed: Natural = key(0, "seed of the groups")
    groups_per_class: Positive | None = key(
        None, "groups of each class; null: one for every image"
    )
    layout: Literal["grid", "multi_image"] = key(
        "grid",
        "grid: one picture of all four images; multi_image: four pictures, for models that read "
        "several",
    )
    canvas: Pixels = key(672, "grid: side of the square picture in pixels")
    gap: Natural = key(20, "grid: width of the gaps in pixels")
