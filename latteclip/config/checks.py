"""Check what a run needs besides valid keys, in its first second and in a dry run."""

import os
from collections.abc import Collection, Iterator
from typing import Any

from latteclip.config.labellers import Captioner
from latteclip.config.registry import ENGINES, VOTES
from latteclip.config.resolve import Dataset, Run
from latteclip.core.errors import UserError
from latteclip.core.files import (
    CLASSES,
    DISCOVER,
    FOLDERS,
    GROUPS,
    SCORES,
    SPLITS,
    existing,
    folders_in,
)
from latteclip.core.run_options import read_options
from latteclip.core.terminal import URL, one_line

NAMED = 5  # folders of a message


def refuse_unwritable() -> None:
    """Raise UserError if a run cannot write into the current folder, where its results go."""
    for folder in (".snakemake", "results", "resources"):
        place = existing(folder)
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"A run writes into {place}, which cannot be written to; change its permissions, "
                "or run in another folder, for example by latteclip workflow."
            )


def refuse_unready(run: Run) -> None:
    """Raise UserError for the first contradiction, missing file or unknown name of a run."""
    for dataset in run.datasets:
        for problem in _problems(dataset):
            raise UserError(f"Dataset {dataset.name}: {problem}")


def _problems(dataset: Dataset) -> Iterator[str]:
    """Yield what is wrong with a dataset, as the end of a sentence."""
    yield from _other_results(dataset)
    yield from _source(dataset)
    yield from _methods(dataset)
    yield from _labellers(dataset)
    for captioner in dataset.answer_tables:
        whose = f"of the labeller {captioner.name}, " if captioner.name else ""
        yield from (f"{whose}{problem}" for problem in _asked(captioner))
    for model in dataset.models_of_jobs:
        if model.path and not os.path.exists(model.path):
            yield f"the folder of a model, {model.path}, is not there; correct the path."


def _other_results(dataset: Dataset) -> Iterator[str]:
    """Check that the last run into the folder of the results was of this dataset.

    A limited run of another one has the same folder as a dataset of such a name.
    """
    noted = read_options(dataset.name)
    if not noted or dataset.whole in noted["dataset"]:
        return
    if os.path.isdir(dataset.folder):
        limit = noted.get("limit")
        yield (
            f"{dataset.folder} has the results of dataset {', '.join(noted['dataset'])}"
            f"{f' with limit={limit}' if limit else ''}; take another name or limit, or delete "
            "the folder."
        )


def _source(dataset: Dataset) -> Iterator[str]:
    """Check the source of the images, and that a folder of images has classes."""
    source, split = dataset.keys.source, dataset.keys.split
    folder, named = source.folder, dataset.keys.class_names
    if not folder and not source.downloads:
        yield (
            "it has no source; name the folder of its images with --config "
            f"dataset={dataset.name} image_dir=..., or as source in its file."
        )
    if named in (DISCOVER, FOLDERS) and split.kind != "folders":
        yield (
            f"class_names {named} is for images in folders, but split.kind is "
            f"{split.kind}; put the images into a folder, or name the classes."
        )
    key = "image_dir" if dataset.run.keys.image_dir else "source.folder"
    for name, place in ((key, folder), ("split.examples", split.examples)):
        if place and not os.path.isdir(place):  # False, not an error, where barred
            yield f"{name} {place} is not a folder; correct the path."
    if not folder:
        return
    images = os.path.join(folder, split.images)
    # If not, index_images says why.
    is_readable = os.access(images, os.R_OK | os.X_OK)
    has_names = named in (DISCOVER, FOLDERS) or split.class_list or split.examples
    if split.kind == "folders" and not has_names and is_readable:
        yield from _class_names(folder, images)


def _class_names(folder: str, images: str) -> Iterator[str]:
    """Check that a list or the folders of images name the classes of a dataset."""
    file = os.path.join(folder, CLASSES)
    if os.path.lexists(file):
        return
    folders = sorted(folders_in(images))
    # Folders below train, val and test can be nothing else.
    if any(
        folders_in(f"{images}/{split}") for split in SPLITS if split in folders
    ):
        return
    found = ", ".join(map(one_line, folders[:NAMED])) or "none"
    yield (
        f"{folder} has no {CLASSES}; its folders are: {found}. If the folders are the classes, add "
        f"--config class_names=folders. If not, write the names of the classes into {file}, one "
        "per line. Or let a stage propose classes: --config class_names=discover. Or name a folder "
        "with a few images of each class: --config \"split={'examples': 'examples'}\"."
    )


def _labellers(dataset: Dataset) -> Iterator[str]:
    """Check the files of labellers, and that no two are the same."""
    same: dict[Any, str] = {}
    names = [labeller.name for labeller in dataset.labellers]
    for labeller in dataset.labellers:
        if names.count(labeller.name) > 1:
            yield f"labellers has two labellers called {labeller.name}; rename one."
        decides = labeller.captioner or labeller.keys.model_copy(
            update={"name": ""}
        )
        other = same.setdefault(decides, labeller.name)
        if other != labeller.name:
            yield (
                f"the labellers {other} and {labeller.name} have the same answers, which would "
                "count twice; leave one of them out, or change its model or prompt."
            )
        file = labeller.keys.file
        if file and not os.path.isfile(file):
            yield (
                f"of the labeller {labeller.name}, file {file} is not a file; correct the path."
            )


def _methods(dataset: Dataset) -> Iterator[str]:
    """Check that the settings of a method fit each other and those of the dataset."""
    columns = dataset.columns
    for method in dataset.methods:
        objective, labels = method.objective, method.pseudo_labels
        allowed = objective.pseudo_labels
        if method.averaged and not method.averaged.objective.module:
            yield (
                f"methods.{method.name}.of is {method.averaged.name}, which is not trained; name a "
                "method like flyp."
            )
        if objective.reads_encoders and not dataset.run.image_encoders:
            yield f"method {method.name} needs image_encoders; set them, or leave it out of method."
        if allowed and labels not in allowed:
            yield (
                f"method {method.name} takes pseudo_labels {' or '.join(allowed)}, not {labels}."
            )
        if labels in VOTES and labels not in columns:
            found = " and ".join(columns) or "those of other labellers"
            yield (
                f"method {method.name} has pseudo_labels {labels}, but the labels here are "
                f"{found}: lmm are class scores, caption are captions; change one of the two."
            )


def _asked(captioner: Captioner) -> Iterator[str]:
    """Check that a captioner can do what it is asked for: its engine, model and files."""
    name, engine = captioner.settings.engine, captioner.engine
    if captioner.kind == SCORES:
        kind = captioner.scores.kind
        if kind not in engine.scores:
            able = [each for each, one in ENGINES.items() if kind in one.scores]
            yield (
                f"captioner.engine {name} gives no scores of scores.kind {kind}; set the engine to "
                f"{' or '.join(able)}, or scores.kind to {' or '.join(engine.scores) or 'null'}. "
                "Scores of your own are a labeller of kind file."
            )
    elif not engine.writes_captions:
        yield f"captioner.engine {name} writes no captions; set another."
    elif engine.reads_file and not os.path.isfile(captioner.file or ""):
        key = "groups_file" if captioner.kind == GROUPS else "images_file"
        yield f"captioner.{key} must be a file of your captions, not {captioner.file}."


def refuse_unanswered(
    run: Run, pending: Collection[str], *, has_gpus: bool
) -> None:
    """Raise UserError if nobody would answer the questions of a run about the pending files.

    A server has no address, or a captioner of the hub would take days without a GPU. An empty
    CUDA_VISIBLE_DEVICES asks for the CPU.
    """
    has_time = has_gpus or os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    for dataset in run.datasets:
        for captioner in dataset.pending_captioners(pending):
            engine, model = captioner.engine, captioner.settings.model
            address = engine.address
            if address and not os.environ.get(address):
                raise UserError(
                    f"Dataset {dataset.name}: captioner.engine {captioner.settings.engine} needs "
                    f"the address of a server: export {address}=https://..., or set another engine."
                )
            if engine.loads_model and not has_time and not os.path.isdir(model):
                raise UserError(
                    f"Dataset {dataset.name}: this machine has no NVIDIA GPU (nvidia-smi is not "
                    f"there), and captions by {model} would take days; set labellers=[] to do "
                    f"without, captioner.engine to openai with a server at {URL}, or to file for "
                    "captions of your own, or CUDA_VISIBLE_DEVICES= in the environment to use the "
                    "CPU all the same."
                )
