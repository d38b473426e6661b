"""The section `inference`."""

from typing import Annotated

from pydantic import Field

from latteclip.config.sections.base import Positive, Section, key


class InferenceSection(Section):
    """Zero-shot pseudo-labels and evaluation."""

    batch_size: Positive = key(256, "images encoded at once; without a GPU at most 32")
    topk: Annotated[int, Field(ge=5)] = key(5, "best classes kept for each image")
