"""What tables of captions and of class scores say of themselves in their metadata."""

from dataclasses import dataclass

from latteclip.captions.pictures import Layout
from latteclip.config.sections.groups import GroupsSection


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
    """Who answered, and what the answers cost."""

    source: AnswerSource
    engine: str = ""  # names and versions, separated by commas
    date: str | None = None  # date of the last answer
    tokens_read: int = 0
    tokens_written: int = 0
    cost: float = 0.0  # money, as far as it is known
    max_cost: float | str | None = None
    beyond_budget: int = 0  # images or groups that were not asked about for max_cost


@dataclass(kw_only=True)
class CaptionsMetadata(AnswersMetadata):
    """The metadata of CAPTIONS."""

    prompt: str
    retry_prompt: str  # added to the prompt of a second attempt
    layout: Layout  # layout of an image
    groups: GroupsSection | None = None  # None: the captions are of images


@dataclass(frozen=True)
class Rest:
    """The training images that were not asked about, though they could be."""

    images: int
    changes: (
        float | None
    )  # labels that answers about them would change, if that is expected
    reason: str  # the key that ended the questions: share, max_cost or min_gain

    @property
    def sentence(self) -> str:
        """The rest in words."""
        why = "Little is gained (scores.min_gain)"
        if self.reason != "min_gain":
            why = f"scores.{self.reason} ended the questions"
        brings = ""
        if self.changes is not None:
            brings = (
                f" Answers about them are expected to change {self.changes:,.1f} labels."
            )
        return f"{why}: {self.images:,} images were not asked about.{brings}"

    def __add__(self, other: "Rest") -> "Rest":
        changes = None
        if self.changes is not None and other.changes is not None:
            changes = self.changes + other.changes
        return Rest(self.images + other.images, changes, self.reason)


@dataclass(kw_only=True)
class ScoresMetadata(AnswersMetadata):
    """The metadata of CLASS_SCORES."""

    classnames: list[str]
    kind: str  # value of scores.kind
    prompt: str
    answer: str | None  # template of the answers whose likelihood is asked for
    topk: int
    orders: int | None  # number of orders of the options
    share: float
    examples: int = 0  # sure images of each likely class that were shown
    choose: str = "margin"
    rest: Rest | None = None  # None: all images were asked about
