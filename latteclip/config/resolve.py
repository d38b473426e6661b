"""Resolve the configuration once: a run with its datasets, methods and labellers, as objects.

Layers, the later one winning: the defaults of the keys, config.yaml, the dataset's file, the
method, the method's keys in the dataset's file, the command line. A method that is `like` another
starts from all settings of the other, those of the dataset included.
"""

from collections.abc import Callable, Collection
from functools import cache, cached_property
from pathlib import Path

from latteclip.config import models, registry
from latteclip.config.keys import (
    Config,
    DatasetSection,
    LabellerSection,
    MethodSection,
)
from latteclip.config.labellers import Captioner, DatasetLabeller, labeller_of
from latteclip.config.layers import Layer, merge
from latteclip.config.models import ModelSource
from latteclip.config.registry import COLUMNS, OBJECTIVES
from latteclip.config.schema import unknown, validate
from latteclip.core.errors import UserError
from latteclip.core.files import DISCOVER, IMAGES, NAMES, SCORES, TABLES

# Epochs that a job is given time for where their number is "auto".
MAX_AUTO_EPOCHS = 30


class Run:
    """What one command runs: datasets, methods and seeds, with all settings resolved."""

    def __init__(
        self,
        files: Layer,
        given: Layer,
        place: Callable[[str], str] = str,
        has_gpus: bool = False,
    ) -> None:
        """Validate keys, values and names, or raise UserError for the first mistake.

        Args:
            files: the configuration of the files (`layers.defaults`).
            given: the keys of --config and --configfile, which also win over those of a dataset.
            place: where a path of the workflow lies, in a module with `prefix:`.
            has_gpus: whether jobs find GPUs.
        """
        self.place = place
        self.has_gpus = has_gpus
        self.given = given
        self.layer = merge(files, given)
        self.keys = validate(Config, self.layer)
        # Suffixes of files of a table with its own name, and of datasets of a limited run.
        table = self.keys.table.name
        self.suffix = "" if table == "summary" else f"-{table}"
        self.limit_suffix = (
            "" if self.keys.limit is None else f"_{self.keys.limit}"
        )
        # Image encoders beside CLIP, by the names of their files.
        self.image_encoders = {
            models.slug({"model": name}): name for name in self.keys.image_encoders
        }
        self.lineage(self.keys.table.baseline, "table.baseline")
        self.datasets = [
            self.dataset(f"{name}{self.limit_suffix}") for name in self._chosen()
        ]
        # Of all methods: any can be asked for by the path of its results.
        any_dataset = self.datasets[0]
        self.objectives = {
            name: any_dataset.method(name).objective for name in self.keys.methods
        }

    def _chosen(self) -> list[str]:
        """Return the keys of the datasets. `image_dir` becomes the source of the one dataset."""
        names, folder = self.keys.dataset, self.keys.image_dir
        if names == ["all"]:
            names = self.downloadable
        if folder is None:
            return names
        values = self.layer["datasets"].setdefault(names[0], {})
        file = values.get("split", {}).get("file")
        is_free = "source" not in values or (file and Path(folder, file).is_file())
        if len(names) > 1 or not is_free:
            raise UserError(
                f"image_dir {folder} cannot be the source of dataset {', '.join(names)}: it is for "
                f"one dataset, of your own or with its {file or 'split.file'} in the folder; name "
                "your images otherwise, such as dataset=mine."
            )
        values["source"] = {"folder": folder}
        return names

    @cache  # noqa: B019  a run lives as long as its process
    def dataset(self, name: str) -> "Dataset":
        """Return a dataset by the name of its folder below results.

        UserError: no dataset has it, or one has it in a run without `limit`.
        """
        known = self.layer["datasets"]
        folders = [f"{each}{self.limit_suffix}" for each in known]
        if name not in folders:
            sentence = unknown(f"Dataset {name!r}", name, folders)
            raise UserError(
                f"{sentence} For your own images add image_dir=path/to/photos."
            )
        if self.limit_suffix and name in known:
            raise UserError(
                f"limit={self.keys.limit} would write to results/{name}, which are the results of "
                f"the dataset {name}; take another limit."
            )
        return Dataset(self, name)

    @property
    def downloadable(self) -> list[str]:
        known = self.layer["datasets"].items()
        return sorted(
            key for key, each in known if "downloads" in each.get("source", {})
        )

    def lineage(self, method: str, key: str = "Method") -> list[str]:
        """Return a method that a key names, after those that it is like, the first like no other.

        UserError: one of them is not configured, or they form a circle.
        """
        lineage: list[str] = []
        name: str | None = method
        while name:
            if name not in self.keys.methods:
                raise UserError(
                    unknown(f"{key} {name!r}", name, self.keys.methods)
                )
            if name in lineage:
                circle = ", ".join([*lineage, name])
                raise UserError(
                    f"The keys `like` form a circle: {circle}; remove one."
                )
            lineage.append(name)
            key, name = f"methods.{name}.like", self.keys.methods[name].like
        return lineage[::-1]

    def encoder_models(self, name: str) -> list[ModelSource]:
        """Return the model of an image encoder beside CLIP, by the name of its file."""
        return models.encoder_models([self.image_encoders[name]])

    @cached_property
    def hub_models(self) -> dict[str, ModelSource]:
        """Models that come from the hub, by the names of their notes."""
        return {
            models.slug(model.names): model
            for dataset in self.datasets
            for model in dataset.models_of_jobs
            if model.names
        }


class Dataset:
    """A dataset of a run: its settings, methods and labellers."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        # Its key in the configuration, from which a limited run takes its images.
        self.whole = name.removesuffix(run.limit_suffix)
        self.results = f"results/{name}"  # as rules name it
        self.folder = run.place(self.results)  # where it lies
        of_dataset = run.layer["datasets"][self.whole]
        merged = merge(run.layer, of_dataset, run.given)
        self._layer = {
            key: value
            for key, value in merged.items()
            if key in DatasetSection.model_fields
        }
        self._layer["methods"] = of_dataset.get("methods", {})
        self.keys = validate(DatasetSection, self._layer)

    # Methods.

    @cached_property
    def method_names(self) -> list[str]:
        """Names of the methods that run on it.

        On images of one's own, training without a GPU is a decision that their page offers.
        """
        if self.run.keys.method is not None:
            return self.run.keys.method
        names = ["zero_shot", "zero_shot_adapted", "image_prototypes"]
        if self.run.image_encoders:
            names.append("image_prototypes_encoders")
        is_benchmark = "train" in self.keys.split.counts
        if is_benchmark:
            names.append("latteclip")
        if is_benchmark or self.run.has_gpus:
            names.append(registry.RECOMMENDED)
        return names

    @cached_property
    def methods(self) -> list["Method"]:
        return [self.method(name) for name in self.method_names]

    @cache  # noqa: B019
    def method(self, name: str) -> "Method":
        """Return a configured method with its settings for this dataset."""
        run = self.run
        lineage = run.lineage(name)
        given = run.given.get("methods", {})
        layers = (run.layer["methods"], self._layer["methods"], given)
        values = merge(*(layer.get(each) for each in lineage for layer in layers))
        if "objective" not in values:
            raise UserError(
                f"Method {name} needs methods.{lineage[0]}.objective, or `like`."
            )
        values["finetune"] = merge(
            self._layer.get("finetune"),
            values.get("finetune"),
            run.given.get("finetune"),
            *(given.get(each, {}).get("finetune") for each in lineage),
        )
        return Method(self, name, validate(MethodSection, values))

    @property
    def trainings(self) -> list[tuple["Method", int]]:
        """Each fine-tuning of the run, those of an average included, with its seed."""
        trained = dict.fromkeys(
            method.trained for method in self.methods if method.trained
        )
        return [
            (method, seed) for method in trained for seed in self.run.keys.seeds
        ]

    @property
    def runs(self) -> list[tuple["Method", int]]:
        """Each evaluation with its seed; a method without training runs once."""
        return [
            (method, seed)
            for method in self.methods
            for seed in (self.run.keys.seeds if method.objective.module else [0])
        ]

    @property
    def candidates(self) -> list[tuple["Method", int]]:
        """The runs among which select_model chooses, if it can."""
        able = [run for run in self.runs if not run[0].objective.is_supervised]
        has_held_out = self.keys.selection.share > 0
        return able if has_held_out and len(able) > 1 else []

    @property
    def run_folders(self) -> list[str]:
        """The folder of each evaluation, as rules name it."""
        return [method.folder(seed) for method, seed in self.runs]

    @property
    def candidate_folders(self) -> list[str]:
        """The folder of each run among which select_model chooses, as rules name it."""
        return [method.folder(seed) for method, seed in self.candidates]

    @property
    def models(self) -> list[ModelSource]:
        """The CLIP model."""
        return [models.clip_model(self.keys.clip.model, self.keys.clip.pretrained)]

    @property
    def all_models(self) -> list[ModelSource]:
        """The CLIP model, and image encoders beside it."""
        encoders = self.run.image_encoders.values()
        return [*self.models, *models.encoder_models(encoders)]

    @property
    def models_of_jobs(self) -> list[ModelSource]:
        """All models that its jobs may load."""
        users: list[Captioner | DatasetLabeller] = [
            *self.captioners,
            *self.labellers,
        ]
        of_users = (model for user in users for model in user.models)
        return [*self.all_models, *of_users]

    # Captions and labellers.

    def captioner(self, kind: str) -> Captioner:
        """Return whom the run asks for a kind of TABLES."""
        settings = self.keys.captioner
        if kind == NAMES:
            settings = settings.model_copy(
                update={"max_new_tokens": registry.NAME_TOKENS}
            )
        return Captioner(self, kind, settings, self.keys.scores, self.keys.prompts)

    @property
    def captioners(self) -> list[Captioner]:
        """All that captioners can be asked for about its images: a table of each."""
        of_labellers = (
            each.captioner for each in self.labellers if not each.column
        )
        return [*map(self.captioner, TABLES), *filter(None, of_labellers)]

    @property
    def answer_tables(self) -> list[Captioner]:
        """Captioners, or the user's files in their place, whose answers the run needs."""
        kinds = {f"{kind}s" for kind in self.caption_kinds}
        if self.keys.scores.kind is not None:
            kinds.add(SCORES)
        if self.discovers:
            kinds.add(NAMES)
        return [
            each for each in self.captioners if each.name or each.kind in kinds
        ]

    def pending_captioners(self, pending: Collection[str]) -> list[Captioner]:
        """Return the captioners that a run asks which will write the pending files."""
        return [
            each
            for each in self.captioners
            if f"{self.folder}/{each.table}" in pending
            and not each.engine.reads_file
        ]

    @cached_property
    def labellers(self) -> list[DatasetLabeller]:
        """Who labels the training images: by default class scores, or else captions."""
        keys = self.keys.labellers
        if keys is None:
            kind = self.keys.scores.kind
            name = COLUMNS[SCORES if kind else IMAGES]
            keys = [LabellerSection(name=name, kind=kind or "captions")]
        return [labeller_of(self, each) for each in keys]

    def labeller(self, name: str) -> DatasetLabeller:
        return next(each for each in self.labellers if each.name == name)

    @property
    def vote_tables(self) -> list[str]:
        """The tables of the labellers' votes, as rules name them."""
        return [labeller.path_of_votes for labeller in self.labellers]

    @property
    def columns(self) -> list[str]:
        """Columns of the labellers whose tables the run has anyway."""
        return [labeller.column for labeller in self.labellers if labeller.column]

    @property
    def caption_kinds(self) -> set[str]:
        """Kinds of captions, "image" and "group", that a method or its labels need."""
        kinds = {
            kind
            for method in self.methods
            for kind in (method.averaged or method).caption_kinds
        }
        if self.reads_fused_labels and COLUMNS[IMAGES] in self.columns:
            kinds.add("image")
        return kinds

    @property
    def reads_image_captions(self) -> bool:
        return "image" in self.caption_kinds

    @property
    def reads_fused_labels(self) -> bool:
        return any(method.reads_fused_labels for method in self.methods)

    @property
    def can_be_judged(self) -> bool:
        """Whether votes judge models, without captions that nothing else needs."""
        if "image" in self.caption_kinds or self.reads_fused_labels:
            return True
        return all(labeller.asks != IMAGES for labeller in self.labellers)

    @property
    def discovers(self) -> bool:
        """Whether a stage proposes the classes."""
        return self.keys.class_names == DISCOVER

    @property
    def shards(self) -> int:
        """Number of jobs that write each kind of captions, and the class scores.

        One job reads a user's file: with a part of the images it might find none of them there.
        """
        if self.captioner(IMAGES).engine.reads_file:
            return 1
        return self.keys.compute.shards


class Method:
    """A method with its settings for one dataset."""

    def __init__(self, dataset: Dataset, name: str, keys: MethodSection) -> None:
        self.dataset = dataset
        self.name = name
        self.keys = keys
        self.objective = OBJECTIVES[keys.objective]

    def folder(self, seed: int) -> str:
        return f"{self.dataset.results}/{self.name}/seed{seed}"

    @property
    def averaged(self) -> "Method | None":
        """The method whose models this one averages."""
        if not self.objective.averages:
            return None
        return self.dataset.method(str(self.keys.of))

    @property
    def averaged_folders(self) -> list[str]:
        """The trainings that it averages, or its own, as rules name them: one of each seed."""
        trained = self.averaged or self
        return [trained.folder(seed) for seed in self.dataset.run.keys.seeds]

    @property
    def trained(self) -> "Method | None":
        """The method that is fine-tuned: this one, or the averaged one."""
        return self.averaged or (self if self.objective.module else None)

    @property
    def pseudo_labels(self) -> str | None:
        """Its pseudo-labels; None: it reads true labels or none."""
        if self.averaged:
            return self.averaged.pseudo_labels
        return self.keys.pseudo_labels if self.objective.pseudo_labels else None

    @property
    def reads_fused_labels(self) -> bool:
        return self.objective.averages or self.pseudo_labels in registry.FUSED

    @property
    def classifier(self) -> str:
        """The classifier of a method without training."""
        return f"{self.dataset.results}/{self.objective.classifier}"

    @property
    def encoders(self) -> dict[str, str]:
        """Image encoders beside CLIP by which it classifies."""
        if not self.objective.reads_encoders:
            return {}
        return self.dataset.run.image_encoders

    @property
    def caption_kinds(self) -> list[str]:
        """Kinds of captions, "image" and "group", that it trains on."""
        switches = dict(self.keys.switches)
        kinds = self.objective.captions
        return [kind for kind in kinds if switches[f"{kind}_description"]]

    @property
    def reads_image_captions(self) -> bool:
        return "image" in self.caption_kinds

    @property
    def reads_group_captions(self) -> bool:
        return "group" in self.caption_kinds

    @property
    def searches_learning_rate(self) -> bool:
        return self.keys.finetune.lr == "auto"

    @property
    def max_epochs(self) -> int:
        """How often it passes over the images, at most."""
        epochs = self.keys.finetune.epochs
        return MAX_AUTO_EPOCHS if epochs == "auto" else epochs
