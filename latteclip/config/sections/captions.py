"""The section `captions`."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import AUTO, Auto, Section, key

Shards = Annotated[int, Field(ge=1, le=1000)] | Auto


class CaptionsSection(Section):
    """How captioning is divided into jobs."""

    shards: Shards = key(
        AUTO,
        "jobs that write captions or class scores; auto: one for each free GPU of the first run",
    )
