"""The section `unknown`."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import Section, key


class UnknownSection(Section):
    """Images that show none of the classes."""

    share: Annotated[float, Field(ge=0, le=0.5)] = key(
        0.05, "share of training images to mark as unknown, those furthest from every class"
    )
