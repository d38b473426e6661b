"""Registry of objectives, captioning engines and labellers.

The configuration and the commands read these records. A stage gets what it needs of a record as a
parameter, and finds the module of an objective or an engine by its name.
"""

from dataclasses import dataclass

from latteclip.core.files import IMAGES, SCORES
from latteclip.core.terminal import DECISIONS_KEY, DECISIONS_URL, KEY, URL

# Columns <name>_label and <name>_confidence of FUSED_LABELS, by what the run asks its captioner.
COLUMNS = {IMAGES: "caption", SCORES: "lmm"}
VOTES = tuple(COLUMNS.values())
NAME_TOKENS = 16  # longest name of an image that a captioner gives
DECISIONS = "decisions"  # a value of scores.kind, and the engine that alone has it


@dataclass(frozen=True)
class LabellerRecord:
    """A kind of labeller."""

    asks: str | None = None  # key of TABLES: what it asks a captioner for
    # Keys that it may have beside its name and its kind.
    keys: tuple[str, ...] = ()
    needs: str | None = None  # the key that it must have
    loads_clip: bool = False  # whether it is a CLIP model


_CAPTIONER = ("model", "engine", "prompt", "max_images")
_SCORES = LabellerRecord(SCORES, _CAPTIONER)
LABELLERS = {
    "captions": LabellerRecord(IMAGES, (*_CAPTIONER, "file")),
    "likelihood": _SCORES,
    "multiple_choice": _SCORES,
    DECISIONS: _SCORES,
    "file": LabellerRecord(keys=("file",), needs="file"),
    "zero_shot": LabellerRecord(keys=("model",), needs="model", loads_clip=True),
}
# Names that no labeller has: other labels have them.
RESERVED = ("zero_shot", "adapted", "images", "fused")
# Training labels that fuse_labels writes, and all training labels that a method may have.
FUSED = (*VOTES, "fused")
PSEUDO_LABELS = ("zero_shot", "zero_shot_adapted", *FUSED)


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord:
    """What a method optimises, if anything.

    A method trains (`module`), or has a classifier that is not trained (`classifier`), or takes the
    trainings of another method (`averages`), and classifies by the fused labels.
    """

    # A module of latteclip/train/objectives, which trains once for each seed.
    module: str | None = None
    classifier: str | None = None  # file below results/<dataset>
    averages: bool = False
    pseudo_labels: tuple[str, ...] = ()  # kinds of pseudo-labels that it takes
    is_supervised: bool = False  # whether it trains on the true labels
    in_paper: bool = False
    # Kinds of captions that it trains on, unless switched off.
    captions: tuple[str, ...] = ()
    # Whether it classifies by image encoders beside CLIP.
    reads_encoders: bool = False


OBJECTIVES = {
    "zero_shot": ObjectiveRecord(
        classifier="class_embeddings.safetensors", in_paper=True
    ),
    "zero_shot_adapted": ObjectiveRecord(
        classifier="classifiers/adapted.safetensors"
    ),
    "image_prototypes": ObjectiveRecord(
        classifier="classifiers/image_prototypes.safetensors",
        pseudo_labels=("fused",),
    ),
    "image_prototypes_encoders": ObjectiveRecord(
        classifier="classifiers/image_prototypes_encoders.safetensors",
        pseudo_labels=("fused",),
        reads_encoders=True,
    ),
    "flyp": ObjectiveRecord(
        module="flyp",
        pseudo_labels=PSEUDO_LABELS,
        in_paper=True,
    ),
    "flyp_supervised": ObjectiveRecord(module="flyp", is_supervised=True),
    "latteclip": ObjectiveRecord(
        module="latteclip",
        pseudo_labels=PSEUDO_LABELS,
        in_paper=True,
        captions=("image", "group"),
    ),
    "average_weights": ObjectiveRecord(averages=True),
}

RECOMMENDED = "recommended"  # the method of config.yaml for images of one's own


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What writes captions and scores classes."""

    # Whether it loads the model itself, on a GPU if there is one.
    loads_model: bool = False
    scores: tuple[str, ...] = ()  # values of scores.kind that it can give
    # The variable of the environment with the address of the server that it sends pictures to.
    address: str | None = None
    key: str | None = None  # that of the key which it asks for
    writes_captions: bool = True
    reads_file: bool = False  # whether captions come from the user's files


LETTERS = "multiple_choice"
# Each has a module latteclip/captions/engines/<name>.py, but for that of the user's files.
ENGINES = {
    "vllm": EngineRecord(loads_model=True, scores=("likelihood", LETTERS)),
    "openai": EngineRecord(address=URL, key=KEY, scores=(LETTERS,)),
    DECISIONS: EngineRecord(
        address=DECISIONS_URL,
        key=DECISIONS_KEY,
        scores=(DECISIONS,),
        writes_captions=False,
    ),
    "transformers": EngineRecord(loads_model=True, scores=("likelihood", LETTERS)),
    "file": EngineRecord(reads_file=True),
}
