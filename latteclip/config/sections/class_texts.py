"""Keys of a dataset's classes: what their texts are made of, and their groups."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import Section, Text, key, optional_key

Texts = Text | Annotated[list[str], Field(min_length=1)]


class TemplateSection(Section):
    """The class template."""

    template: Texts = key(
        "a photo of a {}.", "class template with {} for the name, or a list to average over"
    )


class SynonymsSection(Section):
    """Other names of the classes."""

    class_synonyms: dict[str, list[str]] = optional_key(
        "other names of classes, averaged with the name", default={}
    )


class ClassTextsSection(TemplateSection, SynonymsSection):
    """What the texts of the classes are made of."""
