"""Captioners with their questions, and the labellers of a dataset."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from latteclip.config import hub_names
from latteclip.config.hub_names import Model
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
    def models(self) -> list[Model]:
        """The model that its jobs load."""
        return [hub_names.captioner(self.captioner)] if self.engine.loads_model else []

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

    def files(self, kind: str) -> list[str]:
        """Return the user's file that replaces it."""
        is_groups = kind == GROUPS
        file = self.captioner.groups_file if is_groups else self.captioner.images_file
        return [file] if self.engine.reads_file and file else []


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
    """A labeller of the training images, and the table of its answers or votes."""

    dataset: "Dataset"
    keys: LabellerSection
    asker: Asker | None  # None: it asks no captioner

    @property
    def name(self) -> str:
        return self.keys.name

    @property
    def asks(self) -> str | None:
        """What it asks a captioner for: a key of TABLES."""
        return LABELLERS[self.keys.kind].asks

    @property
    def column(self) -> str | None:
        """Key of `registry.VOTES` if the run has its table anyway: columns of FUSED_LABELS."""
        if self.asker is not self.dataset.asker:
            return None
        return COLUMNS[str(self.asks)]

    @property
    def decides(self) -> tuple[object, ...]:
        """All that its votes follow from beside the images."""
        if self.asker is None:
            return (self.keys.model_copy(update={"name": ""}),)
        return (self.asks, self.asker.captioner, self.asker.scores, self.asker.prompts)

    @property
    def table(self) -> str:
        """The table of a captioner's answers, or of votes, below the results of a dataset."""
        if self.asker is None:
            return f"votes/{self.name}.parquet"
        if self.asker.name:
            return labeller_table(self.name)
        return TABLES[str(self.asks)]

    @property
    def answers(self) -> str | None:
        """The table of a captioner's answers."""
        return f"{self.dataset.results}/{self.table}" if self.asks else None

    @property
    def writes_votes(self) -> bool:
        """Whether write_votes writes its votes: captioners score classes themselves."""
        return self.asks != SCORES

    @property
    def votes(self) -> str:
        """The table of its votes, below the results of a dataset."""
        return f"votes/{self.name}.parquet" if self.writes_votes else self.table

    @property
    def clip(self) -> ClipSection | None:
        """The CLIP model that votes; None: it is a labeller of another kind."""
        if not LABELLERS[self.keys.kind].loads_clip:
            return None
        model, tag = str(self.keys.model), None
        if model.startswith(hub_names.OPEN_CLIP):
            model, _, tag = model.removeprefix(hub_names.OPEN_CLIP).rpartition("/")
        precision = self.dataset.keys.clip.precision
        return ClipSection(model=model, pretrained=tag, precision=precision)

    @property
    def models(self) -> list[Model]:
        """The CLIP model that its votes follow from."""
        if self.asks is not None:
            return self.dataset.models
        return [hub_names.clip(self.clip)] if self.clip else []


def labeller_of(dataset: "Dataset", keys: LabellerSection) -> Labeller:
    """Return a labeller; if it asks what the run asks, it has the run's table."""
    asks = LABELLERS[keys.kind].asks
    if asks is None:
        return Labeller(dataset, keys, None)
    run, asker = dataset.asker, _asker_of(dataset, keys)
    same_scores = asks != SCORES or asker.scores == run.scores
    same = same_scores and (asker.captioner, asker.prompts) == (run.captioner, run.prompts)
    return Labeller(dataset, keys, run if same else asker)


def _asker_of(dataset: "Dataset", keys: LabellerSection) -> Asker:
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
    if LABELLERS[keys.kind].asks == SCORES:
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
    asker = dataset.asker
    asked = [Asking(asker, f"{kind}s") for kind in dataset.caption_kinds]
    if dataset.keys.scores.kind is not None:
        asked.append(Asking(asker, SCORES))
    if dataset.discovers:
        asked.append(Asking(asker, NAMES))
    for labeller in dataset.own_labellers:
        if labeller.asker is not None:
            asked.append(Asking(labeller.asker, str(labeller.asks)))
    return asked


def askings(dataset: "Dataset") -> list[Asking]:
    """Return all that captioners are asked for about the images of a dataset."""
    return [each for each in answer_tables(dataset) if not each.asker.engine.reads_file]
