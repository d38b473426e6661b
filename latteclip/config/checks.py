"""Check what a run needs besides a valid configuration, before its first job and in a dry run.

Imports nothing heavy.
"""

import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from latteclip.config import hub_names
from latteclip.config.configuration import Configuration
from latteclip.config.stage_params import captions_in_use
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import URL

CLASSES = "classes.txt"
SPLITS = {"train", "val", "test"}
HIDDEN = (".", "__MACOSX")
LARGE_MODEL = 2e9  # bytes of a captioner that takes days without a GPU


def refuse_unready(configuration: Configuration) -> None:
    """Raise UserError for the first missing file or unknown name of a run."""
    for dataset in configuration.datasets:
        found = [_folder, _clip]
        if configuration.caption_kinds(dataset) or configuration.scores_classes(dataset):
            found += [_captioner, _files]
        for problems in found:
            for problem in problems(configuration, dataset):
                raise UserError(f"Dataset {dataset}: {problem}")


def _folder(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that a folder of images has classes."""
    folder = configuration.dataset(dataset)["source"].get("folder")
    split = configuration.section("split", dataset)
    if folder is None or split["kind"] != "folders" or split.get("classes"):
        return
    file = os.path.join(folder, CLASSES)
    images = os.path.normpath(os.path.join(folder, split.get("images", ".")))
    is_readable = os.access(images, os.R_OK | os.X_OK)  # if not, index_images says why
    if is_readable and not os.path.lexists(file) and not class_folders(images):
        yield (
            f"{folder} has neither class folders nor a {CLASSES}. Move the images of each class "
            f"into a folder of its own, or write the names of the classes into {file}, one per "
            "line."
        )


def class_folders(folder: str) -> set[str]:
    """Return the folders of a folder of images, or else of its folders train, val and test."""
    names = _folders(folder)
    splits = names & SPLITS
    return names if not splits else set().union(*(_folders(f"{folder}/{s}") for s in splits))


def _folders(place: str) -> set[str]:
    with os.scandir(place) as entries:
        return {e.name for e in entries if e.is_dir() and not e.name.startswith(HIDDEN)}


def _clip(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that open_clip knows the names of the CLIP model and its weights, or that files exist.

    The pair of both is checked by download_clip, the first job.
    """
    values = configuration.section("clip", dataset)
    model, pretrained = values["model"], values["pretrained"]
    if model.startswith(hub_names.WHOLE):
        return
    if model.replace("/", "-") not in open_clip_models():
        yield f"clip.model {model} is unknown; {suggestion(model, open_clip_models())}"
    if "/" in pretrained and not os.path.isfile(pretrained):
        yield f"clip.pretrained {pretrained} is not a file."
    tag = pretrained.lower().replace("-", "_")  # as open_clip compares it
    if not os.path.isfile(pretrained) and tag not in open_clip_tags():
        yield f"clip.pretrained {pretrained}: {suggestion(pretrained, open_clip_tags())}"


def _captioner(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check the name of the captioner's model, and that its server has an address."""
    values = configuration.section("captioner", dataset)
    engine, model = values["engine"], values["model"]
    if engine in hub_names.ENGINES and not os.path.isdir(model):
        if hub_names.is_folder(model):
            yield f"captioner.model {model} is not a folder."
        elif "/" not in model:
            yield (
                f"captioner.model {model} is neither a folder nor a name of the Hugging Face hub, "
                "such as llava-hf/llava-v1.6-mistral-7b-hf."
            )
    if engine == "openai" and not os.environ.get(URL) and not _has_answers(configuration, dataset):
        yield (
            f"captioner.engine openai needs the address of a server: export {URL}=http://host:8000"
            "/v1, or set another engine."
        )


def _has_answers(configuration: Configuration, dataset: str) -> bool:
    """Return whether the tables of the captioner's answers exist."""
    tables = captions_in_use(configuration, dataset)
    tables += [f"results/{dataset}/class_scores.parquet"] * configuration.scores_classes(dataset)
    return all(map(os.path.isfile, tables))


def _files(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that the user's captions and scores exist if a method of the run reads them."""
    if configuration.section("captioner", dataset)["engine"] != "file":
        return
    files = configuration.user_files(dataset)
    needed = {
        f"captioner.{kind}s_file": _without(configuration, dataset, kind)
        for kind in configuration.caption_kinds(dataset)
    }
    if configuration.scores_classes(dataset):
        needed["scores.file"] = " where scores.kind is set."
    for key, reason in needed.items():
        if key not in files:
            yield f"captioner.engine file needs {key}{reason}"
        # Snakemake would go on with a table that was made of another file.
        elif not os.path.isfile(files[key]):
            yield f"{key} {files[key]} is not a file."


def _without(configuration: Configuration, dataset: str, kind: str) -> str:
    """Return which methods read captions of a kind, and how to run the others only."""
    methods = configuration.methods_of(dataset)
    reading = [m for m in methods if configuration.needs_captions(m, kind, dataset)]
    others = ",".join(m for m in methods if m not in reading)
    without = f" To run without them, give method={others}." if others else ""
    return f", captions of {kind}s, for {', '.join(reading)}.{without}"


def refuse_slow_captions(configuration: Configuration, pending: Collection[str]) -> None:
    """Raise UserError if a large captioner would write some of the pending files without a GPU.

    An empty CUDA_VISIBLE_DEVICES asks for the CPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    for dataset in configuration.datasets:
        tables = ("captions/images", "captions/groups", "class_scores", "captions/shards")
        places = tuple(f"results/{dataset}/{table}" for table in tables)
        asks = any(path.startswith(places) for path in pending)
        if asks and _is_large(configuration, dataset):
            model = configuration.section("captioner", dataset)["model"]
            raise UserError(
                f"Dataset {dataset}: this machine has no NVIDIA GPU (nvidia-smi is not there), and "
                f"captions by {model} would take days. Let a server write them, "
                f"--config \"captioner={{'engine': 'openai', 'model': '{model}'}}\" with {URL}; "
                f"bring your own, captioner.engine file; or set CUDA_VISIBLE_DEVICES= in the "
                f"environment to use the CPU all the same."
            )


def _is_large(configuration: Configuration, dataset: str) -> bool:
    """Return whether the captioner is large; one of the hub, of unknown size, counts as large."""
    values = configuration.section("captioner", dataset)
    if values["engine"] not in hub_names.ENGINES:
        return False
    if not os.path.isdir(values["model"]):
        return True
    return sum(f.stat().st_size for f in os.scandir(values["model"]) if f.is_file()) > LARGE_MODEL


@cache
def open_clip_models() -> frozenset[str]:
    """Return the models of the installed open_clip, whose import would take that of torch."""
    return frozenset(path.stem for path in _open_clip().glob("model_configs/*.json"))


@cache
def open_clip_tags() -> frozenset[str]:
    """Return the names of pretrained weights: the arguments of `dict` in a source of open_clip."""
    source = (_open_clip() / "pretrained.py").read_text("utf-8")
    return frozenset(re.findall(r"(\w+)=_\w+\(", source))


def _open_clip() -> Path:
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
