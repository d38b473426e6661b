"""Captioners with their questions, and the labellers of a dataset."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from latteclip.config import registry
from latteclip.config.keys import (
    CaptionerSection,
    ClipSection,
    LabellerSection,
    PromptsSection,
    ScoresSection,
)
from latteclip.config.registry import (
    COLUMNS,
    DECISIONS,
    ENGINES,
    LABELLERS,
    EngineRecord,
    Model,
)
from latteclip.core.class_templates import PLACE
from latteclip.core.files import (
    GROUPS,
    IMAGES,
    NAMES,
    SCORES,
    TABLES,
    labeller_table,
)

if TYPE_CHECKING:
    from latteclip.config.resolve import Dataset

# Keys of a captioner that belong to its model, so that a labeller with another one has none.
OF_MODEL = {"revision": None, "quantization": None}


@dataclass(frozen=True)
class Asker:
    """A captioner with its questions: that of the run, or of a labeller."""

    dataset: "Dataset"
    captioner: CaptionerSection
    scores: ScoresSection
    prompts: PromptsSection
    name: str = ""  # of the labeller

    @property
    def engine(self) -> EngineRecord:
        return ENGINES[self.captioner.engine]

    @property
    def gpus(self) -> int:
        """GPUs of a job, 0 if a server or the user writes the captions."""
        return self.captioner.tensor_parallel_size if self.engine.loads_model else 0

    @property
    def models(self) -> list[Model]:
        """The model that its jobs load."""
        is_loaded = self.engine.loads_model
        return [registry.captioner_model(self.captioner)] if is_loaded else []

    def max_images(self, kind: str) -> int | None:
        """Return about how many images it is asked about at most; None: all, or a file's."""
        section = self.scores if kind == SCORES else self.captioner
        return None if self.engine.reads_file else section.max_images

    @property
    def score_prompt(self) -> str:
        """The question before a class's text; a multiple choice has questions of its own."""
        return self.prompts.image if self.scores.kind == "likelihood" else ""

    @property
    def reads_pseudo_labels(self) -> bool:
        """Whether questions about images, or their order, need pseudo-labels."""
        return PLACE in self.prompts.image or self.max_images(IMAGES) is not None

    def file(self, kind: str) -> str | None:
        """Return the user's file that replaces it."""
        if not self.engine.reads_file:
            return None
        captioner = self.captioner
        return captioner.groups_file if kind == GROUPS else captioner.images_file


@dataclass(frozen=True)
class Asking:
    """What a captioner is asked for: captions of images or groups, names of images, or scores."""

    asker: Asker
    kind: str  # a key of TABLES

    @property
    def table(self) -> str:
        """The table of the answers, below the results of a dataset."""
        name = self.asker.name
        return labeller_table(name) if name else TABLES[self.kind]

    def is_pending(self, pending: Collection[str]) -> bool:
        """Return whether the table, or a shard of it, is among the files that a run will write."""
        results = self.asker.dataset.folder
        shards = f"{results}/captions/shards/{PurePath(self.table).stem}-"
        return any(file.startswith((f"{results}/{self.table}", shards)) for file in pending)


@dataclass(frozen=True)
class Labeller:
    """A labeller of the training images, and the table of its votes."""

    dataset: "Dataset"
    keys: LabellerSection
    asking: Asking | None  # None: it asks no captioner

    @property
    def name(self) -> str:
        return self.keys.name

    @property
    def asks(self) -> str | None:
        """What it asks a captioner for: a key of TABLES."""
        return LABELLERS[self.keys.kind].asks

    @property
    def column(self) -> str | None:
        """One of `registry.VOTES` if the run has its table anyway: columns of FUSED_LABELS."""
        is_of_run = self.asking is not None and not self.asking.asker.name
        return COLUMNS[str(self.asks)] if is_of_run else None

    @property
    def decides(self) -> tuple[object, ...]:
        """All that its votes follow from beside the images."""
        if self.asking is None:
            return (self.keys.model_copy(update={"name": ""}),)
        asker = self.asking.asker
        return (self.asks, asker.captioner, asker.scores, asker.prompts)

    @property
    def writes_votes(self) -> bool:
        """Whether write_votes writes its votes: captioners score classes themselves."""
        return self.asks != SCORES

    @property
    def votes(self) -> str:
        """The table of its votes, below the results of a dataset."""
        if self.asking and not self.writes_votes:
            return self.asking.table
        return f"votes/{self.name}.parquet"

    @property
    def clip(self) -> ClipSection | None:
        """The CLIP model that votes; None: it is a labeller of another kind."""
        if not LABELLERS[self.keys.kind].loads_clip:
            return None
        model, tag = str(self.keys.model), None
        if model.startswith(registry.OPEN_CLIP):
            model, _, tag = model.removeprefix(registry.OPEN_CLIP).rpartition("/")
        precision = self.dataset.keys.clip.precision
        return ClipSection(model=model, pretrained=tag, precision=precision)

    @property
    def models(self) -> list[Model]:
        """The CLIP model that its votes follow from."""
        if self.asking:
            return self.dataset.models
        return [registry.clip_model(self.clip)] if self.clip else []


def labeller_of(dataset: "Dataset", keys: LabellerSection) -> Labeller:
    """Return a labeller; if it asks what the run asks, it has the run's table."""
    asks = LABELLERS[keys.kind].asks
    if asks is None:
        return Labeller(dataset, keys, None)
    run, asker = dataset.asker, _asker_of(dataset, keys, asks)
    same_scores = asks != SCORES or asker.scores == run.scores
    same = same_scores and (asker.captioner, asker.prompts) == (run.captioner, run.prompts)
    return Labeller(dataset, keys, Asking(run if same else asker, asks))


def _asker_of(dataset: "Dataset", keys: LabellerSection, asks: str) -> Asker:
    """Return the captioner of a labeller: its keys over those of the dataset."""
    of_run = dataset.keys
    captioner = keys.model_dump(include={"model", "engine"}, exclude_none=True)
    if captioner.get("model", of_run.captioner.model) != of_run.captioner.model:
        captioner |= OF_MODEL
    if keys.kind == DECISIONS:
        captioner.setdefault("engine", DECISIONS)
    if keys.file is not None:
        captioner = {"engine": "file", "images_file": keys.file, **captioner}
    limit = keys.model_dump(include={"max_images"}, exclude_none=True)
    scores = {}
    if asks == SCORES:
        scores = {"kind": keys.kind, **limit}
    else:
        captioner |= limit
    return Asker(
        dataset,
        of_run.captioner.model_copy(update=captioner),
        of_run.scores.model_copy(update=scores),
        of_run.prompts.model_copy(update={"image": keys.prompt} if keys.prompt else None),
        keys.name,
    )


def answer_tables(dataset: "Dataset") -> list[Asking]:
    """Return all that captioners, or the user's files in their place, give for a dataset."""
    kinds = [f"{kind}s" for kind in dataset.caption_kinds]
    if dataset.keys.scores.kind is not None:
        kinds.append(SCORES)
    if dataset.discovers:
        kinds.append(NAMES)
    of_run = [Asking(dataset.asker, kind) for kind in kinds]
    others = [each.asking for each in dataset.labellers if not each.column and each.asking]
    return [*of_run, *others]


def askings(dataset: "Dataset") -> list[Asking]:
    """Return all that captioners are asked for about the images of a dataset."""
    return [each for each in answer_tables(dataset) if not each.asker.engine.reads_file]
