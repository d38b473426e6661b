"""Messages at the start and end of a run of the workflow, for the handlers of the Snakefile.

A run begins with its datasets and downloads. It ends with the places of the results and the next
command, or with the error messages of failed jobs.
"""

import csv
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from latteclip.config import checks, job_resources, stage_params
from latteclip.config.configuration import Configuration
from latteclip.config.stage_params import MODEL_NOTE, audit_if_any, selection_if_any
from latteclip.core.files import read_object
from latteclip.core.terminal import for_terminal
from latteclip.data.folder_files import IMAGE_SUFFIXES
from latteclip.evaluate.results import read_selection

MAX_COUNTED = 100_000  # image files of a folder
ERROR = "error: "  # begins the message of a command that fails
STOPPED = ("Stopped", "interrupted")  # beginnings of the last line of a log after Ctrl-C
TRACEBACK = "Traceback (most recent call last):"
MAX_LINES = 20  # of a message
SIZES = {  # of models that the documents name
    "ViT-B-32@laion2b_s34b_b79k": " (0.6 GB)",
    "llava-hf--llava-v1.6-mistral-7b-hf": " (15.1 GB)",
    "vit_base_patch14_reg4_dinov2.lvd142m": " (0.35 GB)",
}


def started(configuration: Configuration, pending: Collection[str]) -> list[str]:
    """Return the datasets of a run, and the downloads among the files that its jobs will write."""
    lines = [
        f"{dataset}: {_images(configuration, dataset)}. Methods: "
        f"{', '.join(configuration.methods_of(dataset))}."
        for dataset in configuration.datasets
    ]
    return [*lines, *_downloads(configuration, pending)]


def _images(configuration: Configuration, dataset: str) -> str:
    """Return the numbers of images and classes of a dataset, as far as they are known."""
    folder = configuration.dataset(dataset)["source"].get("folder")
    counts = job_resources.counts(configuration, dataset)
    if counts:
        classes = f" of {counts.classes} classes" if counts.classes else ""
        return f"{counts.train + counts.test:,} images{classes}{_unreadable(dataset)}"
    if folder and configuration.section("split", dataset)["kind"] == "folders":
        limit = configuration.limit
        drawn = f", at most {limit} of each split are drawn" if limit else ""
        return f"{_image_files(folder)} image files in {folder}, {_classes(folder)}{drawn}"
    return f"images in {folder}" if folder else "images to download"


def _unreadable(dataset: str) -> str:
    """Return the number of images that the index left out."""
    path = Path(f"results/{dataset}/corrupt.csv")
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        n = sum(1 for _ in csv.reader(file)) - 1
    return f"; {n:,} could not be read, see {path}" if n else ""


def _image_files(folder: str) -> str:
    """Return the number of files of a folder that are images by their suffix."""
    names = (name for _, _, files in os.walk(folder) for name in files)
    found = (name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
    n = sum(1 for _ in islice(found, MAX_COUNTED + 1))
    return f"{n:,}" if n <= MAX_COUNTED else f"more than {MAX_COUNTED:,}"


def _classes(folder: str) -> str:
    """Return the number of classes of a folder of images, and its source."""
    path = Path(folder, checks.CLASSES)
    try:
        names = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError):
        return f"{len(checks.class_folders(folder))} class folders"
    return f"{len(names)} classes in {path}"


def _downloads(configuration: Configuration, pending: Collection[str]) -> Iterator[str]:
    """Yield the downloads of a run, with known sizes."""
    for dataset in configuration.from_source("downloads"):
        if f"resources/{dataset}/data" in pending:
            size = configuration.dataset(dataset).get("size", "size unknown")
            yield f"To download: the images of {dataset} ({size})."
    sections = [configuration.hub_models(section) for section in ("clip", "captioner")]
    models = [
        f"{' '.join(filter(None, names.values()))}{SIZES.get(slug, '')}"
        for found in (*sections, configuration.hub_eyes())
        for slug, names in found.items()
        if MODEL_NOTE.format(model=slug) in pending
    ]
    if models:
        names = ", ".join(models)
        yield f"To download from the Hugging Face hub, unless its cache has them: {names}."


def finished(configuration: Configuration, outputs: Collection[str]) -> list[str]:
    """Return the places of the results, and the next commands.

    The outputs are those of all jobs, whether or not they had to be written again.
    """
    lines: list[str] = []
    for dataset in configuration.datasets:
        page = f"results/{dataset}/report{configuration.suffix}.html"
        if page in outputs:
            lines += _results(configuration, dataset, page)
        elif f"results/{dataset}/fused_labels.parquet" in outputs:
            results = f"results/{dataset}"
            lines += [
                f"{dataset}: the labels are in {results}/fused_labels.parquet.",
                f"Next, to look at them: latteclip labels show {results}",
                f"Next, to use them: latteclip labels export {results} --format imagefolder "
                "--output labelled",
            ]
    index = f"results/{stage_params.overview(configuration)}"
    if len(configuration.datasets) > 1 and index in outputs:
        lines.append(f"The page of all datasets is {index}.")
    return lines


def _results(configuration: Configuration, dataset: str, page: str) -> Iterator[str]:
    """Yield the page and the model of a dataset, and the commands that use them."""
    yield f"{dataset}: {_images(configuration, dataset)}. The page is {page}."
    folder = f"results/{dataset}/model{configuration.suffix}"
    for selection in selection_if_any(configuration, dataset):
        chosen = read_selection(selection)
        yield f"The chosen model is {chosen.method}, seed {chosen.seed}, in {folder}."
        audits = [path for path in audit_if_any(configuration, dataset) if os.path.isfile(path)]
        for audit in audits:
            yield f"By your answers: {read_object(audit, ['sentence'])['sentence']}"
        if not audits:
            yield f"Next, to see how good it is: latteclip audit results/{dataset}"
        photos = configuration.dataset(dataset)["source"].get("folder", "photos")
        results = f"results/{dataset}" if not configuration.suffix else folder
        yield f"Next, to use it: latteclip predict {shlex.join([results, photos])}"
        if os.path.isfile(f"results/{dataset}/fused_labels.parquet"):
            yield f"Next, to improve it by your answers: latteclip teach results/{dataset}"
    yield from _unfinished(dataset)


def _unfinished(dataset: str) -> Iterator[str]:
    """Yield checkpoints of trainings that did not finish."""
    for folder in sorted(Path("results", dataset).glob("*/seed*/checkpoint*")):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        yield (
            f"{folder} ({size / 1e6:,.0f} MB) is of a training that did not finish. Remove it "
            "unless you want to go on with that training."
        )


def failure(rule: str, wildcards: Mapping[str, str], logs: Sequence[str]) -> str:
    """Return the error message of a job that failed or was stopped, from its last log."""
    values = dict(wildcards)
    of_dataset = f" of {values.pop('dataset')}" if "dataset" in values else ""
    parts = [f"{k} {v}" if k in ("seed", "shard") else v for k, v in values.items()]
    job = f"{rule}{of_dataset}" + (f" ({', '.join(parts)})" if parts else "")
    log = next((log for log in reversed(logs) if os.path.isfile(log)), None)
    if log is None:
        return f"{ERROR}{job} has no log. The messages above say why."
    lines = Path(log).read_text("utf-8", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(ERROR)]
    if starts:
        message = lines[starts[-1] :][:MAX_LINES]
        if TRACEBACK in message:
            message = [*message[: message.index(TRACEBACK)], f"The log is {log}."]
        return for_terminal(f"{ERROR}{job}: {' '.join(message).removeprefix(ERROR)}")
    if lines and lines[-1].startswith(STOPPED):
        return for_terminal(f"{job}: {lines[-1]}")
    return f"{ERROR}{job} ended without a message, as jobs do that are killed. The log is {log}."
