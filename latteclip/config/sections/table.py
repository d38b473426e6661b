"""The section `table`."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import Line, Section, key

KEY = "^[A-Za-z0-9_-]{1,100}$"
Key = Annotated[str, Field(pattern=KEY)]


class TableSection(Section):
    """The table over all datasets and methods of a run."""

    name: Key = key("summary", "name of its files results/<name>.csv and .md")
    baseline: Line = key("zero_shot", "the reference method: gains are relative to it")
