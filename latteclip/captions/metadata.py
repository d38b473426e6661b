"""What tables of captions and of class scores say of themselves in their metadata."""

from dataclasses import dataclass

from latteclip.captions.pictures import Layout
from latteclip.config.keys import GroupsSection


@dataclass(frozen=True)
class AnswerSource:
    """Who answers: a model, as it is configured, or the user's file."""

    model: str | None  # None: the user's file
    revision: str | None
    dtype: str
    quantization: str | None
    max_new_tokens: int
    file: str | None = None  # None: a model


@dataclass(kw_only=True)
class AnswersMetadata:
    """Who answered, and what that took."""

    source: AnswerSource
    engine: str = ""  # names and versions, separated by commas
    date: str | None = None  # date of the last answer
    tokens_read: int = 0
    tokens_written: int = 0
    requests: int = 0
    not_asked: int = 0  # images or groups that `max_images` leaves out

    @property
    def in_words(self) -> str:
        """What was asked, in words."""
        tokens = f"{self.tokens_read:,} tokens read, {self.tokens_written:,} written"
        left = f", {self.not_asked:,} images left out" if self.not_asked else ""
        return f"{self.requests:,} requests to {self.source.model}, {tokens}{left}"


@dataclass(kw_only=True)
class CaptionsMetadata(AnswersMetadata):
    """The metadata of CAPTIONS."""

    prompt: str
    retry_prompt: str  # added to the prompt of a second attempt
    layout: Layout  # layout of an image
    groups: GroupsSection | None = None  # None: the captions are of images


@dataclass(kw_only=True)
class ScoresMetadata(AnswersMetadata):
    """The metadata of CLASS_SCORES."""

    classnames: list[str]
    kind: str  # value of scores.kind
    prompt: str
    answer: str | None  # template of the answers whose likelihood is asked for
    topk: int
