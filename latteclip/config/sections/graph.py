"""The section `graph` of a method."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import AboveZero, Positive, Section, key


class GraphSection(Section):
    """The graph of class texts and training images of label_propagation."""

    neighbours: Positive = key(
        5, "images and class texts that are linked to an image, each"
    )
    gamma: AboveZero = key(5, "power of the cosines between images and texts")
    alpha: Annotated[float, Field(gt=0, lt=1)] = key(
        0.3, "share of a score that comes from neighbours"
    )
