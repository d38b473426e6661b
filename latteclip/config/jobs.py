"""Inputs and settings of jobs that follow from the configuration.

Functions take the objects of `resolve` that the rule names. What a function returns decides which
jobs a changed key reruns: it returns what its stage reads, and nothing else. A file of the results
among settings is a Path, as a job may find it in another place.
"""

import ast
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from latteclip.config import layers, registry
from latteclip.config.labellers import (
    Captioner,
    ConfiguredDataset,
    DatasetLabeller,
)
from latteclip.config.models import ModelSource, slug
from latteclip.config.resolve import Dataset, Method, Run
from latteclip.core.files import digest, fingerprint

# What is in the cache of Hugging Face for a model: shared by all datasets that name it.
MODEL_NOTE = "resources/models/{model}.json"
# A link to the user's folder, by which an index names the images.
FOLDER_LINK = "resources/{dataset}/folder"
PAGES = "latteclip.report.render"  # the module that fills the templates beside it
# Modules that cannot change what a stage writes: devices, errors, messages, and the keys, whose
# values are parameters of their own, as what this module returns is.
WITHOUT_EFFECT = re.compile(
    r"latteclip\.(config\.(?!registry|models).*|core\.(devices|errors|terminal))"
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
CLASS_TEXTS = ("template", "class_synonyms")  # keys of the texts of the classes
Paths = list[str]
Settings = dict[str, Any]


def sections(dataset: ConfiguredDataset, *names: str) -> Settings:
    """Return keys of a dataset, most of them sections, by their names."""
    return {name: getattr(dataset.keys, name) for name in names}


def shared_folder(dataset: Dataset, name: str) -> str:
    """Return a folder that all runs share: the store of answers, or decoded images."""
    return dataset.run.place(f"resources/{dataset.whole}/{name}")


# Code: digests of stages, as parameters of their rules, so that an edit reruns those stages.


@cache  # hundreds of jobs have the same code
def code_of(*modules: str) -> str:
    """Return the digest of modules and of their imports from the package, also in functions.

    Comments, docstrings and formatting do not count.
    """
    imported = closure(*modules)
    parts = [_read(_file(name))[0] for name in sorted(imported)]
    if PAGES in imported:
        templates = sorted(_file(PAGES).parent.glob("templates/*"))
        parts += [template.read_text("utf-8") for template in templates]
    return f"code {modules[0].rpartition('.')[2]} {digest(*parts)[:16]}"


def training_code(method: Method, stage: str) -> str:
    """Return the digest of a stage that trains, and of its objective."""
    objective = f"latteclip.train.objectives.{method.objective.module}"
    return code_of(f"latteclip.train.{stage}", objective)


def captioner_code(captioner: Captioner) -> str:
    """Return the digest of the stage that asks a captioner, and of its engine."""
    return code_of(*captioner.modules)


def closure(*modules: str) -> set[str]:
    """Return modules and their direct and indirect imports from the package."""
    modules_read = set[str]()
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        modules_read.add(module)
        waiting |= _read(_file(module))[1] - modules_read
    return modules_read


@cache  # stages share most modules
def _read(file: Path) -> tuple[str, set[str]]:
    """Return the digest of a file's code without docstrings, and what it imports from the package.

    Modules of no effect are left out.
    """
    tree = ast.parse(file.read_text("utf-8"))
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                node.module,
                *(f"{node.module}.{each.name}" for each in node.names),
            }
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False):
            del node.body[0]
    imports = {
        name
        for name in names
        if name.startswith("latteclip.")
        and not WITHOUT_EFFECT.fullmatch(name)
        and _file(name).is_file()
    }
    return digest(ast.dump(tree)), imports


def _file(name: str) -> Path:
    return layers.PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")


# Sources and models.


def download_dataset(dataset: Dataset) -> Settings:
    """Return where the images and the test split come from, with what a person reads of them."""
    return {
        **sections(dataset, "source", "title", "licence", "citation"),
        "kind": dataset.keys.split.kind,
    }


def downloads(dataset: Dataset) -> Settings:
    """Return what the downloaded files are, without the addresses that they come from."""
    files = dataset.keys.source.downloads.items()
    return {
        "kind": dataset.keys.split.kind,
        **{name: file.model_dump(exclude={"sources"}) for name, file in files},
    }


def index_images(dataset: Dataset) -> Settings:
    """Return how the folder is split, and where its class names come from."""
    return {**dict(dataset.keys.split), **sections(dataset, "class_names")}


def encode_images(dataset: Dataset) -> Settings:
    """Return what image encoders beside CLIP have of CLIP's settings."""
    return {"precision": dataset.keys.clip.precision}


def encode_examples(dataset: Dataset) -> Settings:
    """Return the folder of the examples, and the models that encode them."""
    return {
        "examples_folder": dataset.keys.split.examples,
        "replacements": dataset.keys.split.classname_replace,
        "encoders": list(dataset.run.image_encoders.values()),
        **sections(dataset, "clip"),
    }


def examples_digest(dataset: Dataset) -> str:
    """Return a digest of the folder of the examples."""
    return files_digest(dataset.keys.split.examples)


def propose_classes(dataset: Dataset) -> Settings:
    """Return how many classes a proposal has."""
    return {"classes": dataset.keys.discover.classes}


def downloaded_folder(dataset: Dataset) -> Paths:
    """Return the folder of images, shared by all runs, if a rule makes it."""
    return (
        [] if dataset.keys.source.folder else [f"resources/{dataset.whole}/data"]
    )


def model_notes(models: Iterable[ModelSource]) -> Paths:
    """Return the notes on the models that come from the hub."""
    return [
        MODEL_NOTE.format(model=slug(model.names))
        for model in models
        if model.names
    ]


def model_digests(models: Iterable[ModelSource]) -> str:
    """Return digests of models on this machine.

    No command reads this parameter, but another model in the same folder reruns its jobs.
    """
    return " ".join(files_digest(model.path) for model in models)


@cache  # all jobs of a run have the same models
def files_digest(path: str | None) -> str:
    """Return a digest of a folder or a file, "" if there is none."""
    return fingerprint(path) if path and os.path.exists(path) else ""


def feature_store(dataset: Dataset) -> str:
    """Return the folder of image features, shared by all runs with the same code that encodes."""
    code = code_of("latteclip.clip.feature_store", "latteclip.clip.image_encoders")
    return shared_folder(dataset, f"features/{code.split()[-1]}")


# Captions and class scores.


def shards(dataset: Dataset, table: str) -> Paths:
    """Return the shards of "captions/images", "captions/groups" or "class_scores".

    A dataset has its own number, where `scattergather:` has one for all.
    """
    n = dataset.shards
    path = f"{dataset.results}/captions/shards/{os.path.basename(table)}"
    return [f"{path}-{i}-of-{n}.parquet" for i in range(1, n + 1)]


# Labels.


def pseudo_label_images(dataset: Dataset) -> Settings:
    """Return the CLIP model, and the texts of the classes."""
    return sections(dataset, "clip", *CLASS_TEXTS)


def labellers(dataset: Dataset) -> list[Settings]:
    """Return the labellers of a dataset with the tables of their votes."""
    return [
        {
            "name": each.name,
            "kind": each.keys.kind,
            "column": each.column,
            "table": Path(each.path_of_votes),
            "leaked": each.leaked,
        }
        for each in dataset.labellers
    ]


def write_votes(labeller: DatasetLabeller) -> Settings:
    """Return what a labeller's votes follow from: captions, a file, or a CLIP model."""
    dataset, keys = labeller.dataset, labeller.keys
    values: Settings = {"name": keys.name, "kind": keys.kind}
    if labeller.asks is not None:
        return {**values, "captions": dataset.keys.clip}
    if labeller.clip is not None:
        zero_shot = {"clip": labeller.clip, **sections(dataset, *CLASS_TEXTS)}
        return {**values, "zero_shot": zero_shot}
    return {**values, "file": keys.file}


# Classifiers and trainings.


def fold(dataset: Dataset, seed: int | str) -> Settings:
    """Return which training images a seed leaves out, whatever other seeds there are."""
    return {"share": dataset.keys.selection.share, "number": int(seed)}


def training(method: Method) -> Settings:
    """Return the CLIP model, the method, and the texts of the classes."""
    return {
        "method": method.keys.model_dump(exclude={"of", "like", "mixing"}),
        "module": method.objective.module,
        "flags": flags(method),
        **sections(method.dataset, "clip", *CLASS_TEXTS),
    }


def averaged(method: Method) -> list[Settings]:
    """Return the trainings that average_weights averages: their files, and what they left out."""
    seeds = method.dataset.run.keys.seeds
    return [
        {
            "model": Path(folder, "model"),
            "history": Path(folder, "history.parquet"),
            "fold": fold(method.dataset, seed),
        }
        for folder, seed in zip(method.averaged_folders, seeds, strict=True)
    ]


# Evaluation and the choice of a model.


def flags(method: Method) -> list[str]:
    """Return the flags of a method's runs that its configuration gives."""
    if method.objective.is_supervised:
        return ["supervised"]
    of_paper = method.pseudo_labels in (None, "zero_shot")
    return [] if of_paper and method.objective.in_paper else ["ours"]


def runs(dataset: Dataset) -> list[Settings]:
    """Return the runs of a dataset with their files."""
    return [_run(method, seed) for method, seed in dataset.runs]


def candidates(dataset: Dataset) -> list[Settings]:
    """Return the runs among which select_model chooses."""
    return [_run(method, seed) for method, seed in dataset.candidates]


def _run(method: Method, seed: int) -> Settings:
    folder = Path(method.folder(seed))
    return {
        "method": method.name,
        "seed": seed,
        "metrics": folder / "metrics.json",
        "train_predictions": folder / "train_predictions.parquet",
        "predictions": folder / "predictions.parquet",
        "model": folder / "model",
    }


def selection(dataset: Dataset) -> Paths:
    """Return the output of select_model for a dataset for which it chooses."""
    path = f"{dataset.results}/selection{dataset.run.suffix}.json"
    return [path] if dataset.candidates else []


def answer_tables(run: Run) -> Paths:
    """Return the tables of captioners' answers.

    Snakemake makes a deleted one again for a target that lists it, not for results that were made
    of it.
    """
    return [
        each.path for dataset in run.datasets for each in dataset.answer_tables
    ]


def published(run: Run) -> list[Settings]:
    """Return the published figures about datasets of the run, and about all where it has all.

    A limited run has parts of datasets, which have other names.
    """
    names = [dataset.name for dataset in run.datasets]
    known = {*names, "mean", "gain"} if names == run.downloadable else {*names}
    return [
        figure.model_dump()
        for figure in run.keys.table.published
        if figure.column in known
    ]


def named_answer_tables(*datasets: Dataset) -> list[Settings]:
    """Return the tables of captioners' answers with their names."""
    return [
        {"name": f"{dataset.name}/{each.table}", "table": Path(each.path)}
        for dataset in datasets
        for each in dataset.answer_tables
    ]


def all_runs(run: Run) -> Paths:
    """Return the metrics of every run."""
    return [
        f"{folder}/metrics.json"
        for dataset in run.datasets
        for folder in dataset.run_folders
    ]


# Pages.


def report_dataset(dataset: Dataset) -> Settings:
    """Return the settings of the page of a dataset.

    Without a chosen model, the page's main method is the last one that can be chosen.
    """
    run, keys = dataset.run, dataset.keys
    trains = any(method.trained for method in dataset.methods)
    able = [each for each in dataset.methods if not each.objective.is_supervised]
    return {
        "dataset": dataset.name,
        "baseline": run.keys.table.baseline,
        "main": (able or dataset.methods)[-1].name,
        "training": None
        if trains
        else [*dataset.method_names, registry.RECOMMENDED],
        "suffix": run.suffix,
        "config": {
            "dataset": dataset.name,
            "limit": run.keys.limit,
            "seeds": run.keys.seeds,
            **keys.model_dump(
                exclude={"size", "methods", "finetune"}, exclude_none=True
            ),
            "methods": {
                method.name: method.keys.model_dump(exclude_none=True)
                for method in dataset.methods
            },
        },
    }
