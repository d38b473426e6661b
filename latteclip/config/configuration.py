"""Resolve the workflow's configuration for datasets and methods, without heavy imports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latteclip.config import hub_names, methods
from latteclip.config.layers import merge
from latteclip.config.methods import (
    ENGINES,
    OBJECTIVES,
    VOTERS,
    EngineRecord,
    ObjectiveRecord,
)
from latteclip.config.model import check, unknown
from latteclip.config.sections.base import AUTO
from latteclip.config.sections.captioner import CaptionerSection
from latteclip.config.voters import Entry, VoterOfDataset, changed_sections
from latteclip.core.errors import UserError
from latteclip.core.file_names import DISCOVER, FOLDERS, voter_table
from latteclip.core.files import read_object

Config = Mapping[str, Any]
ALL = "all"
# Number of captioning jobs by `captions.shards: auto`. The first run chose it by its free GPUs.
# Later runs read it here, so that more or fewer GPUs rerun nothing.
SHARDS = "results/{dataset}/captions/shards.json"


def names(value: Any) -> list[str]:
    """Return a list of names from a list, or from a comma-separated string as of `--config`."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts]


class Configuration:
    """The resolved configuration: the settings of each stage for each dataset and method.

    Layers, the later one winning: the defaults of config.yaml; the dataset's file; the method; the
    method's keys in the dataset's file; the command line. A method that is `like` another starts
    from all settings of the other, those of the dataset included.
    """

    def __init__(self, files: Config, given: Config, gpus: int = 1) -> None:
        """Check keys, values and names, or raise UserError for the first mistake.

        Args:
            files: the configuration of the files (`layers.defaults`).
            given: the keys of --config and --configfile, which also win over those of a dataset.
            gpus: number of GPUs for captions if `captions.shards` is auto.
        """
        self._gpus = gpus
        self._given = check(given)
        self.config = check(merge(files, self._given))
        seeds = self.config["seeds"]  # a number, a list, or a comma-separated string
        self.seeds = list(
            range(seeds) if isinstance(seeds, int) else map(int, names(seeds))
        )
        self.table = self.config["table"]
        name = self.table["name"]
        self.limit = self.config["limit"]
        # Suffixes of files of a table with its own name, and of datasets of a limited run.
        self.suffix = "" if name == "summary" else f"-{name}"
        self.limit_suffix = "" if self.limit is None else f"_{self.limit}"
        # Image encoders beside CLIP, by the names of their files.
        image_encoders = filter(None, names(self.config["image_encoders"]))
        self.image_encoders = {
            hub_names.slug({"model": name}): name for name in image_encoders
        }
        self.datasets = self._datasets()
        self.methods = list(
            dict.fromkeys(m for d in self.datasets for m in self.methods_of(d))
        )
        self._check_methods()

    def _datasets(self) -> list[str]:
        known = self.config["datasets"]
        asked = names(self.config["dataset"])
        if folder := self.config.get("image_dir"):
            if len(asked) != 1 or asked == [ALL]:
                raise UserError(
                    f"image_dir is the folder of one dataset, but dataset is {', '.join(asked)}; "
                    "name the folder of each as source.folder in config/datasets/<dataset>.yaml."
                )
            values = known.setdefault(asked[0], {})
            file = values.get("split", {}).get("file")
            if "source" in values and not (file and Path(folder, file).is_file()):
                lacks = f", whose split file {file} it lacks" if file else ""
                raise UserError(
                    f"image_dir {folder} would replace the source of dataset {asked[0]}{lacks}; "
                    "leave image_dir out, or name your images otherwise, such as dataset=mine."
                )
            source = {"folder": folder}
            # Its name, as of those in files.
            check({"datasets": {asked[0]: {"source": source}}})
            values["source"] = source
        chosen = self.from_source("downloads") if asked == [ALL] else asked
        for name in chosen:
            if name not in known:
                sentence = unknown(f"Dataset {name!r}", name, known)
                raise UserError(
                    f"{sentence} For your own images add image_dir=path/to/photos."
                )
            if self.limit is not None and f"{name}{self.limit_suffix}" in known:
                raise UserError(
                    f"A limit of {self.limit} would write to results/{name}{self.limit_suffix}, "
                    "which is a dataset of its own; choose another limit."
                )
        known |= {f"{name}{self.limit_suffix}": known[name] for name in chosen}
        return [f"{name}{self.limit_suffix}" for name in chosen]

    def whole(self, dataset: str) -> str:
        """Return the key of the dataset from which a limited run takes its images."""
        return dataset.removesuffix(self.limit_suffix)

    def dataset(self, dataset: str) -> dict[str, Any]:
        values: dict[str, Any] = self.config["datasets"][dataset]
        return values

    def from_source(self, kind: str) -> list[str]:
        """Return the keys of the datasets with one kind of source."""
        known = self.config["datasets"].items()
        return sorted(key for key, values in known if kind in values.get("source", {}))

    def methods_of(self, dataset: str) -> list[str]:
        """Return the methods that run on a dataset."""
        if self.config["method"] is not None:
            return names(self.config["method"])
        is_benchmark = "counts" in self.section("split", dataset)
        defaults = list(
            methods.BENCHMARK_METHODS if is_benchmark else methods.FOLDER_METHODS
        )
        if self.image_encoders:
            defaults.insert(defaults.index("image_prototypes") + 1, methods.ENCODERS)
        return defaults

    def section(self, name: str, dataset: str, voter: str = "") -> Any:
        """Return a section (clip, split, ...) or the template as resolved for a dataset.

        For a voter of `voters`, it is the section as the voter changes it.
        """
        changed = self._changed_by(dataset, voter) if voter else {}
        layers = (self.config, self.dataset(dataset), self._given, changed)
        having = [{name: layer[name]} for layer in layers if name in layer]
        result = merge(*having)[name]
        if name == "clip" and result["model"].startswith(hub_names.WHOLE):
            result["pretrained"] = None
        if name == "captioner":
            result["square_side"] = CaptionerSection(**result).square
        return result

    def method(self, method: str, dataset: str) -> dict[str, Any]:
        """Return a method's settings and its `finetune` section for a dataset."""
        lineage = self._lineage(method)
        given = self._given.get("methods", {})
        layers = (self.config["methods"], self.dataset(dataset).get("methods", {}), given)
        result = merge(*(layer.get(name) for name in lineage for layer in layers))
        result["finetune"] = merge(
            self.config["finetune"],
            self.dataset(dataset).get("finetune"),
            result.get("finetune"),
            self._given.get("finetune"),
            *(given.get(name, {}).get("finetune") for name in lineage),
        )
        result.pop("like", None)
        return result

    def _inherited(self, method: str) -> dict[str, Any]:
        return merge(*map(self.config["methods"].get, self._lineage(method)))

    def _lineage(self, method: str) -> list[str]:
        """Return the method after those that it is like, the first of which is like no other."""
        lineage = [method]
        while other := self.config["methods"][lineage[0]].get("like"):
            self._check_name(other, f"Method {{}}, which {lineage[0]} is like,")
            if other in lineage:
                circle = ", ".join([*reversed(lineage), other])
                raise UserError(
                    f"The keys `like` of methods form a circle: {circle}; remove one of them."
                )
            lineage.insert(0, other)
        return lineage

    def objective(self, method: str) -> ObjectiveRecord:
        return OBJECTIVES[self._inherited(method)["objective"]]

    def engine(self, dataset: str, voter: str = "") -> EngineRecord:
        return ENGINES[self.section("captioner", dataset, voter)["engine"]]

    def voters(self, dataset: str) -> list[VoterOfDataset]:
        """Return what votes for the classes of the training images."""
        entries = self.section("voters", dataset)
        if entries:
            return [self._voter(dataset, entry) for entry in entries]
        votes = self.section("votes", dataset)
        if votes is None:
            votes = "lmm" if self.scores_classes(dataset) else "caption"
        kinds = {"caption": "captions", "lmm": self.section("scores", dataset)["kind"]}
        kind = str(kinds.get(votes, votes))
        return [VoterOfDataset(votes, kind, VOTERS[votes].table, votes)]

    def _voter(self, dataset: str, entry: Entry) -> VoterOfDataset:
        """Return a labeller of `voters`; one that asks what the run asks anyway has its table."""
        name, kind = entry["name"], entry["kind"]
        asks = methods.VOTER_KINDS[kind].asks
        if asks is None:
            return VoterOfDataset(name, kind, f"votes/{name}.parquet")
        sections = ["captioner", "prompts", *(["scores"] if asks == "scores" else [])]
        is_changed = any(
            self.section(section, dataset, name) != self.section(section, dataset)
            for section in sections
        )
        if is_changed:
            return VoterOfDataset(name, kind, voter_table(name))
        column = "lmm" if asks == "scores" else "caption"
        return VoterOfDataset(name, kind, VOTERS[column].table, column)

    def own_voters(self, dataset: str) -> list[VoterOfDataset]:
        """Return the voters of a dataset for each of which a job writes a table."""
        return [voter for voter in self.voters(dataset) if voter.is_by_own_job]

    def votes_with(self, dataset: str) -> list[str]:
        """Return the keys of VOTERS whose tables vote."""
        return [voter.column for voter in self.voters(dataset) if voter.column]

    def voter_entry(self, dataset: str, voter: str) -> Entry:
        """Return the keys of a voter of `voters`."""
        entries = self.section("voters", dataset)
        return next(entry for entry in entries if entry["name"] == voter)

    def _changed_by(self, dataset: str, voter: str) -> dict[str, Any]:
        entry = self.voter_entry(dataset, voter)
        return changed_sections(entry, self.section("captioner", dataset)["model"])

    def averaged(self, method: str) -> str:
        """Return the method whose models this one averages."""
        return str(self._inherited(method)["of"])

    def reads_encoders(self, method: str) -> bool:
        """Return whether the method classifies by image encoders beside CLIP."""
        return self.objective(method).reads_encoders

    def is_trained(self, method: str) -> bool:
        """Return whether the method trains, once for each seed."""
        return self.objective(method).trains

    def finds_rate(self, method: str, dataset: str) -> bool:
        """Return whether the learning rate of a method is found."""
        return bool(self.method(method, dataset)["finetune"]["lr"] == AUTO)

    def is_average(self, method: str) -> bool:
        """Return whether the method's model averages the trainings of another method."""
        return self.objective(method).averages

    def is_tuned(self, method: str) -> bool:
        """Return whether the method's model is fine-tuned or an average of fine-tuned ones."""
        return self.is_trained(method) or self.is_average(method)

    def pseudo_labels(self, method: str, dataset: str) -> str | None:
        """Return the method's pseudo-labels, or None if it reads true labels or none."""
        values = self.method(method, dataset)
        objective = OBJECTIVES[values["objective"]]
        if objective.averages:
            return self.pseudo_labels(values["of"], dataset)
        if not objective.pseudo_labels:
            return None
        return str(values.get("pseudo_labels", "zero_shot"))

    def reads_fused_labels(self, method: str, dataset: str) -> bool:
        """Return whether the method uses the labels of fuse_labels."""
        return self.pseudo_labels(method, dataset) in methods.FUSED

    def reads_adapted(self, method: str, dataset: str) -> bool:
        """Return whether the method uses the labels of the adapted zero-shot classifier."""
        return self.pseudo_labels(method, dataset) == "zero_shot_adapted"

    def discovers(self, dataset: str) -> bool:
        """Return whether the classes of a dataset are proposed by a stage."""
        return bool(self.section("split", dataset).get("classes") == DISCOVER)

    def has_class_folders(self, dataset: str) -> bool:
        """Return whether a person said that the folders of a dataset are its classes."""
        layers = (self.dataset(dataset), self._given)
        kinds = [layer.get("split", {}).get("kind") for layer in layers]
        classes = self.section("split", dataset).get("classes")
        return classes == FOLDERS or FOLDERS in kinds

    def scores_classes(self, dataset: str) -> bool:
        """Return whether the captioner scores classes."""
        return self.section("scores", dataset)["kind"] is not None

    def reads_captions(self, method: str, kind: str, dataset: str) -> bool:
        """Return whether the method trains on captions of a kind, "image" or "group"."""
        values = self.method(method, dataset)
        is_on = values.get("switches", {}).get(f"{kind}_description", True)
        return bool(kind in OBJECTIVES[values["objective"]].captions and is_on)

    def needs_captions(self, method: str, kind: str, dataset: str) -> bool:
        """Return whether the method or its labels need captions of a kind."""
        if self.reads_captions(method, kind, dataset):
            return True
        vote = any(VOTERS[key].needs_captions for key in self.votes_with(dataset))
        return kind == "image" and vote and self.reads_fused_labels(method, dataset)

    def caption_kinds(self, dataset: str) -> list[str]:
        """Return the kinds of captions, "image" and "group", that a method or its labels need."""
        run = self.methods_of(dataset)
        kinds = []
        for kind in ("image", "group"):
            if any(self.needs_captions(method, kind, dataset) for method in run):
                kinds.append(kind)
        return kinds

    def can_be_judged(self, dataset: str) -> bool:
        """Return whether votes judge models, without captions that nothing else needs."""
        if "image" in self.caption_kinds(dataset):
            return True
        if any(self.reads_fused_labels(m, dataset) for m in self.methods_of(dataset)):
            return True
        keys = self.votes_with(dataset)
        asks = [voter.record.asks for voter in self.own_voters(dataset)]
        return "captions" not in asks and not any(VOTERS[k].needs_captions for k in keys)

    def shards(self, dataset: str) -> int:
        """Return how many jobs write each kind of captions, and the class scores.

        One job reads a user's file: with a part of the images it might find none of them there.
        """
        engine = self.engine(dataset)
        if engine.reads_file:
            return 1
        wanted = self.section("captions", dataset)["shards"]
        if wanted != AUTO:
            return int(wanted)
        noted = Path(SHARDS.format(dataset=dataset))
        if noted.is_file():
            return int(read_object(noted, ["shards"])["shards"])
        if not engine.loads_model:
            return 1
        of_a_job = int(self.section("captioner", dataset)["tensor_parallel_size"])
        return max(1, self._gpus // of_a_job)

    def hub_model(
        self, section: str, dataset: str, voter: str = ""
    ) -> hub_names.Names | None:
        """Return the names of the model of section "clip" or "captioner" if it is on the hub."""
        values = self.section(section, dataset, voter)
        if section == "clip":
            return hub_names.hub_clip(values)
        loads_model = self.engine(dataset, voter).loads_model
        return hub_names.hub_captioner(values) if loads_model else None

    def hub_models(self, section: str) -> dict[str, hub_names.Names]:
        """Return the hub models of all datasets in a section, by the names of their notes."""
        models = []
        for dataset in self.config["datasets"]:
            names = ("", *(voter.name for voter in self.own_voters(dataset)))
            models += [self.hub_model(section, dataset, name) for name in names]
        return {hub_names.slug(names): names for names in models if names}

    def hub_encoders(self) -> dict[str, hub_names.Names]:
        """Return the image encoders that come from the hub, by the names of their notes."""
        return {
            slug: {"model": name}
            for slug, name in self.image_encoders.items()
            if hub_names.local_folder(name) is None
        }

    def runs(self, dataset: str) -> list[tuple[str, int]]:
        """Return (method, seed) of every evaluation; a method without training runs once."""
        return [
            (method, seed)
            for method in self.methods_of(dataset)
            for seed in (self.seeds if self.is_trained(method) else [0])
        ]

    def trainings(self, dataset: str) -> list[tuple[str, int]]:
        """Return (method, seed) of every fine-tuning of the run, those of an average included."""
        run = [
            self.averaged(m) if self.is_average(m) else m for m in self.methods_of(dataset)
        ]
        trained = filter(self.is_trained, dict.fromkeys(run))
        return [(method, seed) for method in trained for seed in self.seeds]

    def candidates(self, dataset: str) -> list[tuple[str, int]]:
        """Return (method, seed) of the runs among which select_model chooses, if it can."""
        eligible = [
            run for run in self.runs(dataset) if self.objective(run[0]).can_be_chosen
        ]
        has_judges = self.section("selection", dataset)["share"] > 0  # held-out images
        return eligible if has_judges and len(eligible) > 1 else []

    def _check_methods(self) -> None:
        """Raise UserError for unknown methods, circles of `like`, and impossible averages."""
        for name in self.methods:
            self._check_name(name, "Method {}")
        self._check_name(self.table["baseline"], "Method {} of table.baseline")
        for name in self.config["methods"]:
            values = self._inherited(name)
            if "objective" not in values:
                key = f"methods.{self._lineage(name)[0]}.objective"
                raise UserError(f"Configuration key {key} is missing; add it, or `like`.")
            if OBJECTIVES[values["objective"]].averages:
                self._check_averaged(name, str(values.get("of")))

    def _check_averaged(self, method: str, of: str) -> None:
        able = [name for name, record in OBJECTIVES.items() if record.has_text_classifier]
        self._check_name(of, f"Method {{}}, methods.{method}.of,")
        if self._inherited(of).get("objective") not in able:
            raise UserError(
                f"methods.{method}.of is {of}, which cannot be averaged; name a method whose "
                f"objective is {' or '.join(able)}."
            )

    def _check_name(self, method: str, what: str) -> None:
        if method not in self.config["methods"]:
            raise UserError(
                unknown(what.format(repr(method)), method, self.config["methods"])
            )
