"""Captioners with what they are asked for, and the labellers of a dataset."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from latteclip.config import models
from latteclip.config.keys import (
    CaptionerSection,
    ClipSection,
    DatasetSection,
    LabellerSection,
    PromptsSection,
    ScoresSection,
)
from latteclip.config.models import ModelSource
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


class ConfiguredDataset(Protocol):
    """What captioners and labellers read of the dataset of `resolve`, which makes them."""

    name: str  # of its folder below results
    whole: str  # its key in the configuration
    keys: DatasetSection
    results: str  # the folder of its results, as rules name it

    @property
    def models(self) -> list[ModelSource]: ...

    def captioner(self, kind: str) -> "Captioner": ...


@dataclass(frozen=True)
class Captioner:
    """A captioner and what it is asked for: that of the run, or of a labeller."""

    dataset: ConfiguredDataset
    # A key of TABLES: captions of images or groups, names of images, or class scores.
    kind: str
    settings: CaptionerSection
    scores: ScoresSection
    prompts: PromptsSection
    name: str = field(default="", compare=False)  # of the labeller

    @property
    def engine(self) -> EngineRecord:
        return ENGINES[self.settings.engine]

    @property
    def modules(self) -> list[str]:
        """The modules of the stage that asks, and of its engine."""
        stage = "score_classes" if self.kind == SCORES else "caption"
        engine = (
            [] if self.engine.reads_file else [f"engines.{self.settings.engine}"]
        )
        return [f"latteclip.captions.{name}" for name in (stage, *engine)]

    @property
    def models(self) -> list[ModelSource]:
        """The model that its jobs load."""
        names = self.settings.model, self.settings.revision
        return [models.captioner_model(*names)] if self.engine.loads_model else []

    @property
    def gpus(self) -> int:
        """How many GPUs a job needs; 0: a server or the user writes the captions."""
        return self.settings.tensor_parallel_size if self.engine.loads_model else 0

    @property
    def max_images(self) -> int | None:
        """About how many images it is asked about at most; None: all, or a file's."""
        section = self.scores if self.kind == SCORES else self.settings
        return None if self.engine.reads_file else section.max_images

    @property
    def prompt(self) -> str:
        """The question; a multiple choice of classes has questions of its own."""
        if self.kind == NAMES:
            return self.dataset.keys.discover.prompt
        if self.kind == SCORES and self.scores.kind != "likelihood":
            return ""
        return self.prompts.group if self.kind == GROUPS else self.prompts.image

    @property
    def reads_pseudo_labels(self) -> bool:
        """Whether questions about images, or their order, need pseudo-labels."""
        return PLACE in self.prompts.image or self.max_images is not None

    @property
    def file(self) -> str | None:
        """The user's file that replaces it."""
        if not self.engine.reads_file:
            return None
        settings = self.settings
        return (
            settings.groups_file if self.kind == GROUPS else settings.images_file
        )

    @property
    def files(self) -> list[str]:
        """The user's file that replaces it, if there is one."""
        return [self.file] if self.file else []

    @property
    def table(self) -> str:
        """The table of the answers, below the results of a dataset."""
        return labeller_table(self.name) if self.name else TABLES[self.kind]

    @property
    def path(self) -> str:
        """The table of the answers, as rules name it."""
        return f"{self.dataset.results}/{self.table}"


@dataclass(frozen=True)
class DatasetLabeller:
    """A labeller of the training images, and the table of its votes."""

    dataset: ConfiguredDataset
    keys: LabellerSection
    captioner: Captioner | None  # None: it asks no captioner

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
        is_of_run = self.captioner is not None and not self.captioner.name
        return COLUMNS[str(self.asks)] if is_of_run else None

    @property
    def leaked(self) -> bool:
        """Whether its captioner is given the zero-shot labels."""
        captioner = self.captioner if self.asks == IMAGES else None
        return bool(captioner and PLACE in captioner.prompts.image)

    @property
    def votes(self) -> str:
        """The table of its votes, below the results of a dataset."""
        if self.captioner and self.asks == SCORES:
            return self.captioner.table
        return f"votes/{self.name}.parquet"

    @property
    def path_of_votes(self) -> str:
        """The table of its votes, as rules name it."""
        return f"{self.dataset.results}/{self.votes}"

    @property
    def files(self) -> list[str]:
        """The user's file of votes, if there is one."""
        return [self.keys.file] if self.keys.file else []

    @property
    def gpus(self) -> int:
        """How many GPUs the job that writes its votes can use."""
        return int(self.keys.kind != "file")

    @property
    def clip(self) -> ClipSection | None:
        """The CLIP model that votes; None: it is a labeller of another kind."""
        if not LABELLERS[self.keys.kind].loads_clip:
            return None
        model, tag = str(self.keys.model), None
        if model.startswith(models.OPEN_CLIP):
            model, _, tag = model.removeprefix(models.OPEN_CLIP).rpartition("/")
        precision = self.dataset.keys.clip.precision
        return ClipSection(model=model, pretrained=tag, precision=precision)

    @property
    def models(self) -> list[ModelSource]:
        """The CLIP model that its votes follow from."""
        if self.captioner:
            return self.dataset.models
        clip = self.clip
        return [models.clip_model(clip.model, clip.pretrained)] if clip else []


def labeller_of(
    dataset: ConfiguredDataset, keys: LabellerSection
) -> DatasetLabeller:
    """Return a labeller, whose keys win over those of the dataset's captioner.

    If it asks what the run asks, it has the run's table.
    """
    asks = LABELLERS[keys.kind].asks
    if asks is None:
        return DatasetLabeller(dataset, keys, None)
    of_run = dataset.captioner(asks)
    settings = keys.model_dump(include={"model", "engine"}, exclude_none=True)
    if keys.model not in (None, of_run.settings.model):
        settings |= {"revision": None, "quantization": None}  # of the model
    if keys.kind == DECISIONS:
        settings.setdefault("engine", DECISIONS)
    if keys.file is not None:
        settings |= {"engine": "file", "images_file": keys.file}
    limit = keys.model_dump(include={"max_images"}, exclude_none=True)
    scores: dict[str, Any] = {}
    if asks == SCORES:
        scores = {"kind": keys.kind, **limit}
    else:
        settings |= limit
    prompts = {"image": keys.prompt} if keys.prompt else {}
    captioner = replace(
        of_run,
        settings=of_run.settings.model_copy(update=settings),
        scores=of_run.scores.model_copy(update=scores),
        prompts=of_run.prompts.model_copy(update=prompts),
        name=keys.name,
    )
    return DatasetLabeller(
        dataset, keys, of_run if captioner == of_run else captioner
    )
