"""The section `discover`."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import AUTO, Auto, Line, Positive, Section, Text, key


class DiscoverSection(Section):
    """Classes of images without class names, if `split.classes` is discover."""

    classes: Annotated[int, Field(ge=2)] | Auto = key(
        AUTO, "number of classes; auto: as many as differ"
    )
    prompt: Text = key(
        "What is the main object in the photo? Answer with its name alone, one to three words.",
        "what the captioner is asked about each image",
    )
    max_new_tokens: Positive = key(16, "longest name, in tokens")
    file: Line | None = key(
        None, "engine file: your names, by image_id; null: captioner.images_file"
    )
