"""The section `selection`."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import Section, key


class SelectionSection(Section):
    """The choice of a model without labels."""

    share: Annotated[float, Field(ge=0, le=0.33)] = key(
        0.1,
        "share of training images that each seed leaves out to judge the models, at least 100 over "
        "all seeds; 0: no model is chosen",
    )
