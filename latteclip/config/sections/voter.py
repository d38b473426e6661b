"""The keys of an item of `voters` that the stage of a voter reads."""

from latteclip.config.sections.base import Line, Section, ShareAboveZero, optional_key
from latteclip.config.sections.table import Key


class VoterSection(Section):
    """Who votes for the classes of training images, and with what."""

    name: Key | None = optional_key("its name, different from those of the others")
    kind: Line | None = optional_key(
        "captions: by a captioner; likelihood, multiple_choice, decisions: class scores by a "
        "captioner; file: your own votes; zero_shot: another CLIP"
    )
    file: Line | None = optional_key(
        "your votes, captions or class scores by image_id; Parquet, CSV or JSON Lines"
    )
    share: ShareAboveZero | None = optional_key(
        "file: share of the images that the file has votes about"
    )
