"""The section `prompts`."""

from latteclip.config.sections.base import Section, Text, key


class PromptsSection(Section):
    """The prompts of the captioner."""

    image: Text = key(
        "Describe the object in the photo concisely, less than 20 words.",
        "about one image; {} is its pseudo-label",
    )
    group: Text = key(
        "Describe the common visual attributes of the objects in all the photos concisely, less "
        "than 20 words.",
        "about a group; {} is its pseudo-label",
    )
