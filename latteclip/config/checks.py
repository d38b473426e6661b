"""Check what a run needs besides a valid configuration, before its first job and in a dry run.

Imports nothing heavy.
"""

import ast
import difflib
import json
import os
from collections.abc import Collection, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from latteclip.config import hub_names
from latteclip.config.configuration import Configuration
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import URL

CLASSES = "classes.txt"
SPLITS = {"train", "val", "test"}
HIDDEN = (".", "__MACOSX")
LARGE_MODEL = 2e9  # bytes of a captioner that takes days without a GPU
CAPTIONS = "results/{dataset}/captions/{kind}s.parquet"
SCORES = "results/{dataset}/class_scores.parquet"
TABLE = "_PRETRAINED"  # of open_clip/pretrained.py: weights by model
QUICK = "quick_gelu"  # marks weights of a model that another one, named with QUICK_MODEL, has too
QUICK_MODEL = "-quickgelu"


def refuse_unready(configuration: Configuration) -> None:
    """Raise UserError for the first missing file or unknown name of a run."""
    for dataset in configuration.datasets:
        for problem in _problems(configuration, dataset):
            raise UserError(f"Dataset {dataset}: {problem}")


def _problems(configuration: Configuration, dataset: str) -> Iterator[str]:
    yield from _folder(configuration, dataset)
    yield from _clip(configuration, dataset)
    if configuration.caption_kinds(dataset) or configuration.scores_classes(dataset):
        yield from _captioner(configuration, dataset)
        yield from _files(configuration, dataset)


def _folder(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that a folder of images has classes."""
    folder = configuration.dataset(dataset)["source"].get("folder")
    split = configuration.section("split", dataset)
    if folder is None or split["kind"] != "folders" or split.get("classes"):
        return
    if os.path.lexists(os.path.join(folder, CLASSES)):
        return
    images = os.path.normpath(os.path.join(folder, split.get("images", ".")))
    if not os.access(images, os.R_OK | os.X_OK):  # index_images says why
        return
    if not class_folders(images):
        yield (
            f"{folder} has neither class folders nor a {CLASSES}. Move the images of each class "
            f"into a folder of its own, or write the names of the classes into "
            f"{os.path.join(folder, CLASSES)}, one per line."
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
    """Check that the CLIP model and its weights are known to open_clip, or are files."""
    values = configuration.section("clip", dataset)
    model, pretrained = values["model"], values["pretrained"]
    if model.startswith(hub_names.FOLDER):
        yield from _text_tower(Path(model.removeprefix(hub_names.FOLDER)))
    elif not model.startswith(hub_names.HUB):
        name, known = model.replace("/", "-"), open_clip_models()
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = (
                f"did you mean {near[0]}?" if near else "open_clip.list_models() has all names."
            )
            yield f"clip.model {model} is unknown; {advice}"
        tags = open_clip_tags(name)
        if os.path.isfile(pretrained) or not known or _clean_tag(pretrained) in tags:
            return
        if "/" in pretrained:
            yield f"clip.pretrained {pretrained} is not a file."
        elif not tags:
            yield f"open_clip has no weights of clip.model {model}; set clip.pretrained to a file."
        else:
            advice = suggestion(pretrained, tags)
            yield f"clip.pretrained {pretrained} is no weights of {model}; {advice}"


def _text_tower(folder: Path) -> Iterator[str]:
    """Check that a folder with a text tower of transformers has the tower's configuration."""
    try:
        config = json.loads((folder / hub_names.CLIP_CONFIG).read_bytes())
        name = config["model_cfg"]["text_cfg"].get("hf_model_name")
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # the stage says why
        return
    if not name or (folder / hub_names.TEXT_TOWER).exists() or _in_cache(name):
        return
    yield (
        f"the text tower of clip.model {folder} is {name} of transformers, whose configuration the "
        f"folder must hold: put its config.json into {folder / hub_names.TEXT_TOWER}."
    )


def _in_cache(name: str) -> bool:
    import huggingface_hub

    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # a name that the hub could not have
        return False


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
    kinds = configuration.caption_kinds(dataset)
    tables = [CAPTIONS.format(dataset=dataset, kind=kind) for kind in kinds]
    if configuration.scores_classes(dataset):
        tables.append(SCORES.format(dataset=dataset))
    return all(map(os.path.isfile, tables))


def _files(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that the user's captions and scores exist if a method of the run reads them."""
    if configuration.section("captioner", dataset)["engine"] != "file":
        return
    files = configuration.user_files(dataset)
    for kind in configuration.caption_kinds(dataset):
        key = f"captioner.{kind}s_file"
        if key not in files:
            yield f"captioner.engine file needs {key}{_without(configuration, dataset, kind)}"
        # Snakemake would go on with a table that was made of another file.
        elif not os.path.isfile(files[key]):
            yield f"{key} {files[key]} is not a file."
    if configuration.scores_classes(dataset):
        if "scores.file" not in files:
            yield "captioner.engine file needs scores.file where scores.kind is set."
        elif not os.path.isfile(files["scores.file"]):
            yield f"scores.file {files['scores.file']} is not a file."


def _without(configuration: Configuration, dataset: str, kind: str) -> str:
    """Return which methods read captions of a kind, and how to run the others only."""
    methods = configuration.methods_of(dataset)
    reading = [m for m in methods if configuration.needs_captions(m, kind, dataset)]
    others = [m for m in methods if m not in reading]
    verb = "reads" if len(reading) == 1 else "read"
    sentence = f": {', '.join(reading)} {verb} captions of {kind}s."
    return (
        f"{sentence} To run without them, give method={','.join(others)}." if others else sentence
    )


def refuse_slow_captions(configuration: Configuration, pending: Collection[str]) -> None:
    """Raise UserError if a large captioner would write captions without a GPU.

    An empty CUDA_VISIBLE_DEVICES asks for the CPU.

    Args:
        configuration: of the run.
        pending: files that its jobs will write.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    for dataset in configuration.datasets:
        folder = f"results/{dataset}"
        tables = (
            f"{folder}/captions/images",
            f"{folder}/captions/groups",
            f"{folder}/class_scores",
        )
        shards = f"{folder}/captions/shards"
        asks = any(path.startswith((*tables, shards)) for path in pending)
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


def open_clip_tags(model: str) -> frozenset[str]:
    """Return the names of the pretrained weights of a model."""
    return _tags().get(model, frozenset())


def _clean_tag(tag: str) -> str:
    """Return a name of weights as open_clip compares it."""
    return tag.lower().replace("-", "_")


def _open_clip() -> Path:
    spec = find_spec("open_clip")
    return Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")


@cache
def _tags() -> dict[str, frozenset[str]]:
    """Return the names of weights by model; none if the source is missing or has another form."""
    source = _open_clip() / "pretrained.py"
    if not source.is_file():
        return {}
    variables: dict[str, dict[str, bool]] = {}
    found: dict[str, frozenset[str]] = {}
    for node in ast.parse(source.read_bytes()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        variables[node.targets[0].id] = _weights(node.value)
        if node.targets[0].id == TABLE and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                weights = variables[value.id] if isinstance(value, ast.Name) else _weights(value)
                model = str(key.value) if isinstance(key, ast.Constant) else ""
                quick = frozenset(name for name, is_quick in weights.items() if is_quick)
                found |= {model: frozenset(weights), model + QUICK_MODEL: quick}
    return {model: weights for model, weights in found.items() if weights}


def _weights(value: ast.expr) -> dict[str, bool]:
    """Return each name of `dict(name=config(...), ...)`, and whether it is marked QUICK."""
    words = value.keywords if isinstance(value, ast.Call) else []
    return {word.arg: _is_quick(word.value) for word in words if word.arg}


def _is_quick(config: ast.expr) -> bool:
    words = config.keywords if isinstance(config, ast.Call) else []
    return any(
        word.arg == QUICK and isinstance(word.value, ast.Constant) and bool(word.value.value)
        for word in words
    )
