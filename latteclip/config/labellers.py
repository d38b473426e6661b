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
from latteclip.config.registry import ENGINES, LABELLERS, EngineRecord
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
DECISIONS = "decisions"  # a kind of labeller, and the only engine that it has


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

    def chooses(self, kind: str) -> bool:
        """Return whether images are chosen, since it is not asked about all."""
        return self.max_images(kind) is not None

    @property
    def reads_pseudo_labels(self) -> bool:
        """Whether questions about images, or their order, need pseudo-labels."""
        return PLACE in self.prompts.image or self.chooses(IMAGES)

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
    name: str
    kind: str  # a key of LABELLERS
    table: str  # below results/<dataset>: a captioner's answers, or votes
    # Key of `registry.VOTES` if the run has the table anyway: columns of FUSED_LABELS.
    column: str | None = None
    asker: Asker | None = None
    clip: ClipSection | None = None
    file: str | None = None
    share: float | None = None

    @property
    def asks(self) -> str | None:
        """What it asks a captioner for: captions or scores."""
        return LABELLERS[self.kind].asks

    @property
    def answers(self) -> str | None:
        """The table of a captioner's answers."""
        return f"{self.dataset.results}/{self.table}" if self.asks else None

    @property
    def writes_votes(self) -> bool:
        """Whether write_votes writes its votes: captioners score classes themselves."""
        return self.asks != "scores"

    @property
    def votes(self) -> str:
        """The table of its votes below results/<dataset>."""
        return f"votes/{self.name}.parquet" if self.writes_votes else self.table

    @property
    def models(self) -> list[Model]:
        """The CLIP model that its votes follow from."""
        if self.asks is not None:
            return self.dataset.models
        return [hub_names.clip(self.clip)] if self.clip else []

    @property
    def is_by_own_job(self) -> bool:
        """Whether a job writes its table for it alone."""
        return self.column is None


def default_labeller(dataset: "Dataset") -> Labeller:
    """Return the labeller of a dataset without the key `labellers`: class scores or captions."""
    if kind := dataset.keys.scores.kind:
        return Labeller(dataset, "lmm", kind, TABLES[SCORES], "lmm", dataset.asker)
    table = TABLES[IMAGES]
    return Labeller(dataset, "caption", "captions", table, "caption", dataset.asker)


def labeller_of(dataset: "Dataset", keys: LabellerSection) -> Labeller:
    """Return a labeller; if it asks what the run asks, it has the run's table."""
    name, kind = str(keys.name), str(keys.kind)
    record = LABELLERS[kind]
    if record.asks is None:
        clip = None
        if record.loads_clip:
            named = hub_names.whole_clip(
                {"model": keys.model, "pretrained": keys.pretrained}
            )
            clip = dataset.keys.clip.model_copy(update=named)
        table = f"votes/{name}.parquet"
        return Labeller(
            dataset, name, kind, table, clip=clip, file=keys.file, share=keys.share
        )
    is_scores = record.asks == "scores"
    own, asker = dataset.asker, _asker_of(dataset, keys, is_scores=is_scores)
    has_scores = not is_scores or asker.scores == own.scores
    if has_scores and (asker.captioner, asker.prompts) == (own.captioner, own.prompts):
        table, column = (SCORES, "lmm") if is_scores else (IMAGES, "caption")
        return Labeller(dataset, name, kind, TABLES[table], column, own)
    return Labeller(dataset, name, kind, labeller_table(name), None, asker)


def _asker_of(dataset: "Dataset", keys: LabellerSection, *, is_scores: bool) -> Asker:
    """Return the captioner of a labeller: its keys over those of the dataset."""
    own = dataset.keys
    captioner = keys.model_dump(include={"model", "engine"}, exclude_none=True)
    if captioner.get("model", own.captioner.model) != own.captioner.model:
        captioner |= OF_MODEL
    if keys.kind == DECISIONS:
        captioner.setdefault("engine", DECISIONS)
    if keys.file is not None:
        captioner = {"engine": "file", "images_file": keys.file, **captioner}
    scores = {"kind": keys.kind} if is_scores else {}
    limit = {} if keys.max_images is None else {"max_images": keys.max_images}
    return Asker(
        dataset,
        own.captioner.model_copy(update=captioner | ({} if is_scores else limit)),
        own.scores.model_copy(update=scores | (limit if is_scores else {})),
        own.prompts.model_copy(update={"image": keys.prompt} if keys.prompt else None),
        str(keys.name),
    )


def answer_tables(dataset: "Dataset") -> list[Asking]:
    """Return all that captioners, or the user's files in their place, give for a dataset."""
    own = dataset.asker
    asked = [Asking(own, f"{kind}s") for kind in dataset.caption_kinds]
    if dataset.keys.scores.kind is not None:
        asked.append(Asking(own, SCORES))
    if dataset.discovers:
        asked.append(Asking(own, NAMES))
    for labeller in dataset.own_labellers:
        if labeller.asker is not None:
            kind = SCORES if labeller.asks == "scores" else IMAGES
            asked.append(Asking(labeller.asker, kind))
    return asked


def askings(dataset: "Dataset") -> list[Asking]:
    """Return all that captioners are asked for about the images of a dataset."""
    return [each for each in answer_tables(dataset) if not each.asker.engine.reads_file]
