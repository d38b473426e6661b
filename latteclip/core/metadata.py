"""What tables say of themselves in their metadata, where several packages read it.

Records that one package alone reads stand there: an edit reruns the stages that import its module.
"""

from dataclasses import dataclass, field

# Each flag of a run, and its footnote in a table.
FLAGS = {
    "supervised": "reads the labels of the training images: an upper bound, not an unsupervised "
    "method",
    "ours": "not in the paper",
    "collapsed": "predictions collapsed in training: fewer than half of the classes are predicted, "
    "or hardly any prediction agrees with its pseudo-label",
    "diverged": "the training diverged at the learning rate that was found: this is the untrained "
    "model",
}
FAILED = frozenset({"collapsed", "diverged"})  # flags of trainings that are never chosen


@dataclass
class IndexMetadata:
    """The metadata of IMAGES."""

    classnames: list[str]  # as CLIP reads them, in the order of the labels
    # That differ, by class name.
    written_names: dict[str, str] = field(default_factory=dict)
    # Files that are no images, by suffix.
    skipped: dict[str, int] = field(default_factory=dict)
    content: str | None = None  # digest of the bytes of all images
    limit: int | None = None  # images of a split in a limited run
    drawn_from: dict[str, int] | None = None  # images of each whole split, of a limited run


@dataclass
class ClassesMetadata:
    """The metadata of tables whose labels and predictions are positions among class names."""

    classnames: list[str]


@dataclass
class VotesMetadata:
    """The metadata of VOTES."""

    classnames: list[str]
    votes: str  # in words: captions, class scores, or votes of several labellers
    unfit: str  # why they cannot compare classifiers; "": they can


@dataclass
class LabellerLabelsMetadata:
    """The metadata of LABELLER_LABELS."""

    classnames: list[str]
    labellers: list[str]  # names, in the order of the labels


@dataclass
class EncoderMetadata:
    """The metadata of IMAGE_FEATURES."""

    model: str  # as the key `image_encoders` names it
    width: int
    # Height and width in pixels; None: as open_clip has it.
    image_size: list[int] | None = None


@dataclass
class ExamplesMetadata:
    """The metadata of EXAMPLES."""

    models: list[str]  # CLIP, and image encoders as the key `image_encoders` names them
    widths: list[int]  # of their features


@dataclass
class UnknownMetadata:
    """The metadata of UNKNOWN."""

    classnames: list[str]
    threshold: float  # threshold of the scores by CLIP
    share: float  # as `unknown.share`
    captioner_threshold: float | None = None  # None: the captioner gave no scores
    # Number of a person's answers: "none" of the classes, or "classes".
    answers: dict[str, int] | None = None
