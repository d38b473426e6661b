"""Resolve the workflow's configuration for datasets and methods.

Imports nothing heavy: a mistake in the configuration is answered in the first second.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latteclip.config import hub_names
from latteclip.config.layers import merge
from latteclip.config.model import check, unknown
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError
from latteclip.core.files import read_object, write_json
from latteclip.core.steps import AUTO

Config = Mapping[str, Any]
ALL = "all"
# Default methods, for images in the user's own folder and for other datasets.
FOLDER_METHODS = ("zero_shot", "zero_shot_calibrated", "image_prototypes", "recommended")
BENCHMARK_METHODS = (*FOLDER_METHODS[:3], "latteclip", "recommended")
# Objectives of methods that do not fine-tune. Those of HEADS have a classifier.
HEADS = ("zero_shot_calibrated", "image_prototypes", "image_prototypes_eyes")
EYES_METHOD = "image_prototypes_eyes"  # runs by default where there are image models beside CLIP
UNTRAINED = ("zero_shot", "label_propagation", *HEADS)
# Objectives that select_model never chooses: one reads labels, the other has no classifier.
NO_CANDIDATES = ("flyp_supervised", "label_propagation")
AVERAGED = ("flyp", "flyp_supervised")  # whose classifier is made of texts only
# Pseudo-labels that fuse_labels makes.
BY_CAPTIONS = ("caption", "lmm", "fused")
# Switches of LatteCLIP of which at least one must be on.
ALTERNATIVES = (
    ("class_description", "image_description", "group_description"),
    ("zero_shot_loss", "finetuned_loss"),
)
# Number of captioning jobs by `captions.shards: auto`. The first run chose it by its free GPUs.
# Later runs read it here, so that more or fewer GPUs rerun nothing.
SHARDS = "results/{dataset}/captions/shards.json"
WILDCARD = re.compile(r"\{\s*\w+\s*[,}]")  # as Snakemake fills it in, in any path of a rule


def names(value: Any) -> list[str]:
    """Return a list of names from a list, or from a comma-separated string as of `--config`."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts]


def seed_list(value: int | str | Iterable[int]) -> list[int]:
    """Return seeds from a count (3 -> 0, 1, 2), a list, or a comma-separated string."""
    if isinstance(value, int):
        return list(range(value))
    return [int(part) for part in names(value)]


class Configuration:
    """The resolved configuration: the settings of each stage for each dataset and method.

    Layers, the later one winning: the defaults of config.yaml; the dataset's file; the method; the
    method's keys in the dataset's file; the command line. A method that is `like` another starts
    from all settings of the other, those of the dataset included.
    """

    def __init__(self, files: Config, given: Config, gpus: int = 1) -> None:
        """Check a configuration.

        Args:
            files: the configuration of the files (`layers.defaults`).
            given: the keys of --config and --configfile, which also win over those of a dataset.
            gpus: number of GPUs for captions if `captions.shards` is auto.

        Raises:
            UserError: the first mistake.
        """
        self._gpus = gpus
        self._given = check(given)
        self.config = check(merge(files, self._given))
        asked = names(self.config["dataset"])
        if folder := self.config.get("image_dir"):
            if len(asked) != 1 or asked == [ALL]:
                raise UserError(f"image_dir belongs to one dataset, but dataset asks for {asked}.")
            self.config["datasets"].setdefault(asked[0], {})["source"] = {"folder": folder}
        self.datasets = self.from_source("downloads") if asked == [ALL] else asked
        self.seeds = seed_list(self.config["seeds"])
        for name in self.datasets:
            if name not in self.config["datasets"]:
                sentence = unknown(f"Dataset {name!r}", name, self.config["datasets"])
                raise UserError(f"{sentence} For your own images add image_dir=path/to/photos.")
        self.limit: int | None = self.config["limit"]
        if self.limit is not None:
            self.datasets = [self._limited(name) for name in self.datasets]
        self.methods = list(dict.fromkeys(m for d in self.datasets for m in self.methods_of(d)))
        self.table = self.config["table"]
        self._check_methods()
        for dataset in self.datasets:
            if fault := self._fault_of_dataset(dataset):
                raise UserError(f"Dataset {dataset} {fault}.")
            for method in self.methods_of(dataset):
                if fault := self._fault_of_method(method, dataset):
                    raise UserError(f"Method {method} for dataset {dataset}: {fault}.")

    @property
    def suffix(self) -> str:
        """Return the suffix of files of a table with its own name, beside the main ones."""
        name = self.table["name"]
        return "" if name == "summary" else f"-{name}"

    @property
    def limit_suffix(self) -> str:
        """Return the suffix of the datasets, table and overview of a limited run."""
        return "" if self.limit is None else f"_{self.limit}"

    def _limited(self, dataset: str) -> str:
        """Add a dataset of a limited number of images, and return its key."""
        name = f"{dataset}{self.limit_suffix}"
        if name in self.config["datasets"]:
            raise UserError(
                f"A limit of {self.limit} would write to results/{name}, but {name} is a dataset "
                "of its own; choose another limit."
            )
        self.config["datasets"][name] = self.config["datasets"][dataset]
        return name

    def whole(self, dataset: str) -> str:
        """Return the key of the dataset from which a limited run takes its images."""
        return dataset.removesuffix(self.limit_suffix)

    def dataset(self, dataset: str) -> dict[str, Any]:
        """Return the content of the dataset's file."""
        found: dict[str, Any] = self.config["datasets"][dataset]
        return found

    def from_source(self, kind: str) -> list[str]:
        """Return the keys of the datasets with one kind of source."""
        return sorted(
            key
            for key, values in self.config["datasets"].items()
            if kind in values.get("source", {})
        )

    def methods_of(self, dataset: str) -> list[str]:
        """Return the methods that run on a dataset."""
        if self.config["method"] is not None:
            return names(self.config["method"])
        in_folder = "folder" in self.dataset(dataset).get("source", {})
        methods = list(FOLDER_METHODS if in_folder else BENCHMARK_METHODS)
        if self.eyes:
            methods.insert(methods.index("image_prototypes") + 1, EYES_METHOD)
        return methods

    def section(self, name: str, dataset: str) -> Any:
        """Return a section (clip, split, ...) or the template as resolved for a dataset."""
        layers = (self.config, self.dataset(dataset), self._given)
        result = merge(*({name: layer[name]} for layer in layers if name in layer))[name]
        if name == "clip" and result["model"].startswith(hub_names.WHOLE):
            result["pretrained"] = None
        if name == "captioner" and result["square_side"] == AUTO:
            result["square_side"] = hub_names.overview_side(result["model"])
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

    def objective(self, method: str) -> str:
        """Return the method's objective."""
        return str(self._inherited(method)["objective"])

    def reads_eyes(self, method: str) -> bool:
        """Return whether the method classifies by image models beside CLIP."""
        return self.objective(method) == EYES_METHOD

    def is_trained(self, method: str) -> bool:
        """Return whether the method's model is fine-tuned or an average of fine-tuned ones."""
        return self.objective(method) not in UNTRAINED

    def is_average(self, method: str) -> bool:
        """Return whether the method's model averages the trainings of another method."""
        return self.objective(method) == "average_weights"

    def averaged(self, method: str) -> str:
        """Return the method whose models this one averages."""
        return str(self._inherited(method)["of"])

    def _inherited(self, method: str) -> dict[str, Any]:
        return merge(*map(self.config["methods"].get, self._lineage(method)))

    def _lineage(self, method: str) -> list[str]:
        """Return the method after those that it is like, the first of which is like no other."""
        lineage = [method]
        while other := self.config["methods"][lineage[0]].get("like"):
            self._check_name(other, f"Method {{}}, which {lineage[0]} is like,")
            if other in lineage:
                circle = ", ".join([*reversed(lineage), other])
                raise UserError(f"Methods are like each other in a circle: {circle}; break it.")
            lineage.insert(0, other)
        return lineage

    def pseudo_labels(self, method: str, dataset: str) -> str | None:
        """Return the method's pseudo-labels, or None if it reads true labels or none."""
        values = self.method(method, dataset)
        if values["objective"] == "average_weights":
            return self.pseudo_labels(values["of"], dataset)
        if values["objective"] not in ("flyp", "latteclip", "image_prototypes", EYES_METHOD):
            return None
        return str(values.get("pseudo_labels", "zero_shot"))

    def reads_fused_labels(self, method: str, dataset: str) -> bool:
        """Return whether the method uses the labels of fuse_labels."""
        return self.pseudo_labels(method, dataset) in BY_CAPTIONS

    def reads_calibrated(self, method: str, dataset: str) -> bool:
        """Return whether the method uses the labels of the calibrated zero-shot classifier."""
        return self.pseudo_labels(method, dataset) == "zero_shot_calibrated"

    def has_captions(self, kind: str, dataset: str) -> bool:
        """Return whether some method of the run needs captions of a kind."""
        return kind in self.caption_kinds(dataset)

    def runs_calibrated(self, dataset: str) -> bool:
        """Return whether the calibrated zero-shot classifier is a method of the run."""
        return "zero_shot_calibrated" in map(self.objective, self.methods_of(dataset))

    def scores_classes(self, dataset: str) -> bool:
        """Return whether class scores of the captioner vote in place of its captions."""
        return self.section("scores", dataset)["kind"] is not None

    def reads_captions(self, method: str, kind: str, dataset: str) -> bool:
        """Return whether the method trains on captions of a kind, "image" or "group"."""
        values = self.method(method, dataset)
        is_on = values.get("switches", {}).get(f"{kind}_description", True)
        return bool(values["objective"] == "latteclip" and is_on)

    def caption_kinds(self, dataset: str) -> list[str]:
        """Return the kinds of captions, "image" and "group", that a method or its labels need."""
        methods = self.methods_of(dataset)
        return [
            kind
            for kind in ("image", "group")
            if any(self.needs_captions(method, kind, dataset) for method in methods)
        ]

    def needs_captions(self, method: str, kind: str, dataset: str) -> bool:
        """Return whether the method or its labels need captions of a kind."""
        vote = self.reads_fused_labels(method, dataset) and not self.scores_classes(dataset)
        return self.reads_captions(method, kind, dataset) or (kind == "image" and vote)

    def shards(self, dataset: str) -> int:
        """Return how many jobs write each kind of captions, and the class scores."""
        wanted = self.section("captions", dataset)["shards"]
        if wanted != AUTO:
            return int(wanted)
        noted = Path(SHARDS.format(dataset=dataset))
        if noted.is_file():
            return int(read_object(noted, ["shards"])["shards"])
        captioner = self.section("captioner", dataset)
        at_once = self._gpus // captioner["tensor_parallel_size"]
        return max(1, at_once) if captioner["engine"] in hub_names.ENGINES else 1

    def hub_model(self, section: str, dataset: str) -> hub_names.Names | None:
        """Return the names of the model of section "clip" or "captioner" if it is on the hub."""
        named = {"clip": hub_names.hub_clip, "captioner": hub_names.hub_captioner}
        return named[section](self.section(section, dataset))

    def hub_models(self, section: str) -> dict[str, hub_names.Names]:
        """Return the hub models of all datasets in a section, by the names of their notes."""
        found = [self.hub_model(section, dataset) for dataset in self.config["datasets"]]
        return {hub_names.slug(names): names for names in found if names}

    @property
    def eyes(self) -> dict[str, str]:
        """Image models beside CLIP, by the names of their files."""
        eyes = filter(None, names(self.config["eyes"]))
        return {hub_names.slug({"model": name}): name for name in eyes}

    def hub_eyes(self) -> dict[str, hub_names.Names]:
        """Return the image models that come from the hub, by the names of their notes."""
        found = {slug: hub_names.hub_eye(name) for slug, name in self.eyes.items()}
        return {slug: model for slug, model in found.items() if model}

    def runs(self, dataset: str) -> list[tuple[str, int]]:
        """Return (method, seed) of every evaluation; a method without training runs once."""
        return [
            (method, seed)
            for method in self.methods_of(dataset)
            for seed in (self.seeds if self._has_seeds(method) else [0])
        ]

    def _has_seeds(self, method: str) -> bool:
        return self.is_trained(method) and not self.is_average(method)

    def trainings(self, dataset: str) -> list[tuple[str, int]]:
        """Return (method, seed) of every fine-tuning of the run, those of an average included."""
        methods = [self.averaged(m) if self.is_average(m) else m for m in self.methods_of(dataset)]
        found = [m for m in dict.fromkeys(methods) if self._has_seeds(m)]
        return [(method, seed) for method in found for seed in self.seeds]

    def candidates(self, dataset: str) -> list[tuple[str, int]]:
        """Return (method, seed) of the runs among which select_model chooses.

        There are none without held-out images, or with less than two runs.
        """
        found = [run for run in self.runs(dataset) if self.objective(run[0]) not in NO_CANDIDATES]
        judges = self.section("selection", dataset)["share"] > 0
        return found if judges and len(found) > 1 else []

    def user_files(self, dataset: str) -> dict[str, str]:
        """Return the user's files that replace the captioner, by their keys."""
        if self.section("captioner", dataset)["engine"] != "file":
            return {}
        return {
            f"{part}.{key}": file
            for part in ("captioner", "scores")
            for key, file in self.section(part, dataset).items()
            if key.endswith("file") and file is not None
        }

    def _check_methods(self) -> None:
        """Raise UserError for unknown methods, circles of `like`, and impossible averages."""
        methods = self.config["methods"]
        for name in self.methods:
            self._check_name(name, "Method {}")
        self._check_name(self.table["baseline"], "Method {} of table.baseline")
        for name in methods:
            if "objective" not in self._inherited(name):
                key = f"methods.{self._lineage(name)[0]}.objective"
                raise UserError(f"Configuration key {key} is missing; add it, or `like`.")
        for name in filter(self.is_average, methods):
            of = str(self._inherited(name).get("of"))
            self._check_name(of, f"Method {{}}, methods.{name}.of,")
            if self.objective(of) not in AVERAGED:
                raise UserError(
                    f"methods.{name}.of is {of}, whose objective {self.objective(of)} cannot be "
                    f"averaged; name a method whose objective is {' or '.join(AVERAGED)}."
                )

    def _check_name(self, method: str, what: str) -> None:
        if method not in self.config["methods"]:
            raise UserError(unknown(what.format(repr(method)), method, self.config["methods"]))

    def _fault_of_method(self, method: str, dataset: str) -> str | None:
        """Return how settings of a method contradict each other or those of the dataset."""
        values, labels = self.method(method, dataset), self.pseudo_labels(method, dataset)
        objective, scored = values["objective"], self.scores_classes(dataset)
        if objective == EYES_METHOD and not self.eyes:
            return "it needs image models beside CLIP; set eyes, or leave it out of method"
        if objective == EYES_METHOD and labels != "fused":
            return f"its pseudo_labels are fused, not {labels}"
        if objective == "image_prototypes" and labels in ("caption", "lmm"):
            return f"its pseudo_labels are zero_shot, zero_shot_calibrated or fused, not {labels}"
        if labels == "lmm" and not scored:
            return "pseudo_labels: lmm are the captioner's class scores; set scores.kind as well"
        if labels == "caption" and scored:
            return "pseudo_labels: caption need scores.kind: null; of class scores they are lmm"
        switches = values.get("switches", {})
        for keys in ALTERNATIVES:
            if objective == "latteclip" and not any(switches.get(key, True) for key in keys):
                return f"its switches {', '.join(keys)} are all off; switch one on"
        return None

    def _fault_of_dataset(self, dataset: str) -> str | None:
        """Return what is wrong with a dataset, as the end of a sentence."""
        values = self.dataset(dataset)
        if "source" not in values:
            return (
                "has no source; name the folder of its images with --config "
                f"dataset={dataset} image_dir=..., or as source in its file"
            )
        try:
            ClassTemplates.of(self.section("template", dataset), values.get("class_synonyms"))
        except UserError as error:
            return f"has wrong words: {str(error).rstrip('.')}"
        folder = values["source"].get("folder", ".")
        if not os.path.isdir(folder):  # False, not an error, where barred
            return f"has the source.folder {folder}, which is not a folder"
        if WILDCARD.search(folder):
            return (
                f"has a source.folder with braces, {folder}, which Snakemake takes for a wildcard; "
                "rename the folder, or give a symbolic link to it"
            )
        clip, captioner = self.section("clip", dataset), self.section("captioner", dataset)
        model = clip["model"]
        config = os.path.join(model.removeprefix(hub_names.FOLDER), hub_names.CLIP_CONFIG)
        if model.startswith(hub_names.FOLDER) and not os.path.isfile(config):
            return f"has the clip.model {model}, but {config} is not there"
        if not model.startswith(hub_names.WHOLE) and not clip["pretrained"]:
            return f"has the clip.model {model}, which needs clip.pretrained"
        longest, answer = captioner["max_model_len"], captioner["max_new_tokens"]
        asks = captioner["engine"] in hub_names.ENGINES and self.caption_kinds(dataset)
        if asks and answer >= longest:
            return (
                f"has captioner.max_new_tokens {answer}, which leave no room for a picture within "
                f"captioner.max_model_len {longest}; lower the first or raise the second"
            )
        return None


def as_json(value: Any) -> str:
    """Return settings as one line of JSON with sorted keys, as rules give them to commands."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def note_shards(dataset: str, number: int) -> None:
    """Note the number of shards for later runs."""
    write_json(SHARDS.format(dataset=dataset), {"shards": number})
