"""Check what a run needs besides valid keys, in its first second and in a dry run."""

import os
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from latteclip.config import hub_names
from latteclip.config.asking import Asking, askings
from latteclip.config.configuration import Configuration
from latteclip.config.methods import OBJECTIVES, VOTER_KINDS, VOTERS
from latteclip.config.sections.split import SplitSection
from latteclip.config.stage_params import (
    names_file,
    user_file,
    votes_file,
)
from latteclip.config.voters import FILE_KEYS
from latteclip.core.class_templates import ClassTemplates, clean_classnames
from latteclip.core.errors import UserError, suggestion
from latteclip.core.file_names import (
    CLASSES,
    DISCOVER,
    FOLDERS,
    SPLITS,
    TABLES,
    edited_classes,
    is_litter,
    lines_of,
)
from latteclip.core.files import existing
from latteclip.core.terminal import DECISIONS_URL, URL, one_line

# Addresses in messages, by the variables of the environment.
EXAMPLES = {URL: "http://host:8000/v1", DECISIONS_URL: "https://host"}
NAMED = 5  # folders of a message
LARGE_MODEL = 2e9  # bytes of a captioner that takes days without a GPU


def refuse_unwritable() -> None:
    """Raise UserError if a run cannot write into the current folder, where its results go."""
    for folder in (".snakemake", "results", "resources"):
        place = existing(folder)
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"A run writes into {place}, which cannot be written to; change its permissions, "
                "or run in another folder, for example by latteclip workflow."
            )


def refuse_unready(configuration: Configuration) -> None:
    """Raise UserError for the first contradiction, missing file or unknown name of a run."""
    _refuse_ambiguous_voters(configuration)
    for dataset in configuration.datasets:
        checks = [_source, _words, _methods, _clip, _image_encoders, _voters]
        if (
            configuration.caption_kinds(dataset)
            or configuration.scores_classes(dataset)
            or configuration.discovers(dataset)
        ):
            checks += [_captions, _scores, _captioner, _files]
        for problems in checks:
            for problem in problems(configuration, dataset):
                raise UserError(f"Dataset {dataset}: {problem}")


def _source(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check the source of the images, and that a folder of images has classes."""
    source = configuration.dataset(dataset).get("source")
    if source is None:
        yield (
            "it has no source; name the folder of its images with --config "
            f"dataset={dataset} image_dir=..., or as source in its file."
        )
        return
    split = configuration.section("split", dataset)
    classes = split.get("classes")
    if classes in (DISCOVER, FOLDERS) and split["kind"] != "folders":
        yield (
            f"split.classes {classes} is for images in folders, but split.kind is "
            f"{split['kind']}; put the images into a folder, or name the classes."
        )
    edited = edited_classes(f"results/{dataset}") if classes == DISCOVER else None
    if edited is not None and len(edited) < 2:
        yield (
            f"results/{dataset}/{CLASSES} has fewer than two classes; write one name per line, or "
            "delete the file to return to the proposal."
        )
    examples = split.get("examples")
    if examples and not os.path.isdir(examples):
        yield f"split.examples {examples} is not a folder; correct the path."
    folder = source.get("folder")
    if folder is None:
        return
    if not os.path.isdir(folder):  # False, not an error, where barred
        key = "image_dir" if configuration.config["image_dir"] else "source.folder"
        yield f"{key} {folder} is not a folder; correct the path."
    images = os.path.normpath(os.path.join(folder, split["images"]))
    if examples and Path(examples).resolve().is_relative_to(Path(images).resolve()):
        yield (
            f"split.examples {examples} is inside {folder}, whose images are those of the dataset; "
            "move it elsewhere."
        )
    is_readable = os.access(images, os.R_OK | os.X_OK)  # if not, index_images says why
    if split["kind"] == "folders" and not classes and is_readable:
        yield from _class_names(configuration, dataset, folder, images)


def _class_names(
    configuration: Configuration, dataset: str, folder: str, images: str
) -> Iterator[str]:
    """Check that a list, examples or the folders of images name the classes of a dataset."""
    split = configuration.section("split", dataset)
    file = os.path.join(folder, CLASSES)
    alike = [name for name in sorted(os.listdir(folder)) if name.lower() == CLASSES]
    if alike and CLASSES not in alike:
        yield f"{os.path.join(folder, alike[0])} is not read; rename it to {CLASSES}."
    if os.path.isfile(file) and not _has_text(file):
        yield (
            f"{file} names no class; write one name per line, or remove the file if the folders "
            "are the classes."
        )
    if os.path.isfile(file):
        yield from _listed_classes(file, SplitSection(**split).classname_replace)
    if os.path.lexists(file) or split.get("examples"):
        return
    folders = sorted(class_folders(images))
    listing = (
        f"write the names of the classes into {file}, one per line. Or let a stage propose "
        "classes: --config \"split={'classes': 'discover'}\". Or name a folder with a few images "
        "of each class: --config \"split={'examples': 'examples'}\"."
    )
    if not folders:
        yield (
            f"{folder} has neither class folders nor a {CLASSES}. Move the images of each class "
            f"into a folder of its own, or {listing}"
        )
    # Folders below train, val and test can be nothing else.
    is_split = not _folders(images).isdisjoint(SPLITS)
    if not is_split and not configuration.has_class_folders(dataset):
        yield (
            f"{folder} has no {CLASSES}, but {some_names(folders)}. If these folders are the "
            f"classes, add --config \"split={{'classes': 'folders'}}\". If not, {listing}"
        )


def _listed_classes(file: str, replacements: Mapping[str, str]) -> Iterator[str]:
    """Check that a list has two classes or more, which differ after clean-up."""
    try:
        clean_classnames(lines_of(file), replacements)
    except UserError as error:
        yield f"{file}: {error}"
    except (OSError, ValueError):  # index_images says why it cannot be read
        return


def _has_text(file: str) -> bool:
    """Return whether a file has more than white space and a byte order mark."""
    return bool(Path(file).read_bytes().removeprefix(BOM_UTF8).strip())


def some_names(folders: Sequence[str]) -> str:
    """Return the number of some folders, and the names of the first of them."""
    some = ", ".join(map(one_line, folders[:NAMED]))
    more = ", ..." if len(folders) > NAMED else ""
    word = "folder" if len(folders) == 1 else "folders"
    return f"{len(folders)} {word} ({some}{more})"


def class_folders(folder: str) -> set[str]:
    """Return the folders of a folder of images, or else of its folders train, val and test."""
    names = _folders(folder)
    splits = names & set(SPLITS)
    if not splits:
        return names
    return set().union(*(_folders(f"{folder}/{split}") for split in splits))


def _folders(place: str) -> set[str]:
    with os.scandir(place) as entries:
        return {e.name for e in entries if e.is_dir() and not is_litter(e.name)}


def _words(configuration: Configuration, dataset: str) -> Iterator[str]:
    synonyms = configuration.dataset(dataset).get("class_synonyms")
    try:
        ClassTemplates.of(configuration.section("template", dataset), synonyms)
    except UserError as error:
        yield str(error)


def _refuse_ambiguous_voters(configuration: Configuration) -> None:
    """Raise UserError for voters of one name that different rules would write."""
    first: dict[str, tuple[str, str]] = {}
    for dataset in configuration.datasets:
        for voter in configuration.own_voters(dataset):
            other, kind = first.setdefault(voter.name, (dataset, voter.kind))
            if VOTER_KINDS[kind].asks != voter.record.asks:
                raise UserError(
                    f"The voter {voter.name} is of kind {kind} in dataset {other} and of kind "
                    f"{voter.kind} in dataset {dataset}; give one of them another name."
                )


def _voters(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check the models and the files of voters whose votes jobs of their own write."""
    entries = configuration.section("voters", dataset)
    if entries and configuration.section("votes", dataset) is not None:
        yield "votes and voters are both set; leave votes out."
    for voter in configuration.own_voters(dataset):
        name = voter.name
        if voter.record.loads_clip:
            problems = _other_clip(configuration, dataset, name)
        elif voter.record.asks is None:
            problems = _votes_file(configuration, dataset, name)
        else:
            problems = _of_captioner(configuration, dataset, name)
        for problem in problems:
            yield f"of the voter {name}, {problem}"


def _other_clip(configuration: Configuration, dataset: str, voter: str) -> Iterator[str]:
    """Check the CLIP model of a voter, which is not the one that is adapted."""
    own = configuration.section("clip", dataset)
    values = configuration.section("clip", dataset, voter)
    keys = ("model", "pretrained")
    if all(own[key] == values[key] for key in keys):
        yield f"model {values['model']} is clip.model, whose scores count anyway; name another."
    yield from _clip(configuration, dataset, voter)


def _votes_file(configuration: Configuration, dataset: str, voter: str) -> Iterator[str]:
    for file in votes_file(configuration, dataset, voter):
        if not os.path.isfile(file):
            yield f"file {file} is not a file."


def _of_captioner(configuration: Configuration, dataset: str, voter: str) -> Iterator[str]:
    """Check the captioner of a voter, its file, and that it scores what it is asked for."""
    record = next(v.record for v in configuration.own_voters(dataset) if v.name == voter)
    changed = configuration.voter_entry(dataset, voter).get("captioner", {})
    if record.asks == "scores" and "max_images" in changed:
        yield "captioner.max_images is for captions; set max_images."
    if record.asks == "captions" and configuration.engine(dataset, voter).decides:
        yield "captioner.engine decisions writes no captions; set another engine."
    yield from _captioner(configuration, dataset, voter)
    if record.asks == "scores":
        yield from _scores(configuration, dataset, voter)
    if configuration.engine(dataset, voter).reads_file:
        key = FILE_KEYS[str(record.asks)]
        files = user_file(configuration, dataset, key, voter)
        if not files:
            yield f"captioner.engine file needs {key}; name it as file of the voter."
        elif not os.path.isfile(files[0]):
            yield f"file {files[0]} is not a file."


def _methods(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that the settings of a method fit each other and those of the dataset."""
    votes = configuration.votes_with(dataset)
    scored = configuration.scores_classes(dataset)
    if any(VOTERS[key].needs_scores for key in votes) and not scored:
        yield f"votes {votes[0]} are class scores, but scores.kind is null; set it."
    for method in configuration.methods_of(dataset):
        values = configuration.method(method, dataset)
        objective = OBJECTIVES[values["objective"]]
        labels = configuration.pseudo_labels(method, dataset)
        allowed = objective.pseudo_labels
        if objective.reads_encoders and not configuration.image_encoders:
            yield f"method {method} needs image_encoders; set them, or leave it out of method."
        if allowed and labels not in allowed:
            yield f"method {method} takes pseudo_labels {' or '.join(allowed)}, not {labels}."
        if labels in VOTERS and labels not in votes:
            voting = " and ".join(votes) or "of other voters"
            yield (
                f"method {method} has pseudo_labels {labels}, but votes are {voting} here (scores."
                f"kind is {'set' if scored else 'null'}): lmm are class scores, caption are "
                "captions; change one of the two."
            )
        switches = values.get("switches", {})
        for keys in objective.switches:
            if not any(switches.get(key, True) for key in keys):
                yield f"method {method} has all switches {', '.join(keys)} off; switch one on."


def _clip(configuration: Configuration, dataset: str, voter: str = "") -> Iterator[str]:
    """Check the names of the CLIP model, its weights and the image encoders beside it.

    The first job checks the pair of model and weights.
    """
    values = configuration.section("clip", dataset, voter)
    model = values["model"]
    pretrained = values["pretrained"]
    if model.startswith(hub_names.FOLDER):
        file = os.path.join(model.removeprefix(hub_names.FOLDER), hub_names.CLIP_CONFIG)
        if not os.path.isfile(file):
            yield f"clip.model {model}: {file} does not exist."
    if model.startswith(hub_names.WHOLE):
        return
    models, tags = open_clip_names()
    if model.replace("/", "-") not in models:
        yield f"clip.model {model} is unknown; {suggestion(model, models)}"
    if not pretrained:
        yield f"clip.model {model} needs clip.pretrained."
        return
    if "/" in pretrained and not os.path.isfile(pretrained):
        yield f"clip.pretrained {pretrained} is not a file."
    tag = pretrained.lower().replace("-", "_")  # as open_clip compares it
    if not os.path.isfile(pretrained) and tag not in tags:
        yield f"clip.pretrained {pretrained}: {suggestion(pretrained, tags)}"


def _image_encoders(configuration: Configuration, _: str) -> Iterator[str]:
    """Check that image encoders in folders are there."""
    for name in configuration.image_encoders.values():
        folder = hub_names.local_folder(name)
        if folder is None:
            continue
        files = [os.path.join(folder, hub_names.CLIP_CONFIG)]
        files.append(os.path.join(folder, "config.json"))
        if not any(map(os.path.isfile, files)):
            yield f"image_encoders {name}: neither {' nor '.join(files)} exists."


@cache
def open_clip_names() -> tuple[set[str], set[str]]:
    """Return the models and tags of open_clip, whose import would take that of torch.

    Tags are the arguments of `dict` in one of its sources.
    """
    folder = Path(str(distribution("open_clip_torch").locate_file("open_clip")))
    models = {path.stem for path in folder.glob("model_configs/*.json")}
    return models, set(
        re.findall(r"(\w+)=_\w+\(", (folder / "pretrained.py").read_text("utf-8"))
    )


def _captioner(
    configuration: Configuration, dataset: str, voter: str = ""
) -> Iterator[str]:
    """Check the captioner's model and lengths, and that its server has an address."""
    values = configuration.section("captioner", dataset, voter)
    engine = configuration.engine(dataset, voter)
    model = values["model"]
    longest = values["max_model_len"]
    answer = values["max_new_tokens"]
    if engine.loads_model and answer >= longest:
        yield (
            f"captioner.max_new_tokens {answer} leave no room for a picture within "
            f"captioner.max_model_len {longest}; lower the first or raise the second."
        )
    named = "/" in model and not hub_names.is_folder(model)
    if engine.loads_model and not named and not os.path.isdir(model):
        yield (
            f"captioner.model {model} is neither a folder nor a name of the Hugging Face hub, "
            "such as llava-hf/llava-v1.6-mistral-7b-hf."
        )
    tables = [
        f"results/{dataset}/{asking.table}"
        for asking in askings(configuration, dataset)
        if asking.voter == voter
    ]
    address = engine.address
    is_set = address is None or bool(os.environ.get(address))
    if not is_set and not all(map(os.path.isfile, tables)):
        yield (
            f"captioner.engine {values['engine']} needs the address of a server: export "
            f"{address}={EXAMPLES[str(address)]}, or set another engine."
        )


def _scores(configuration: Configuration, dataset: str, voter: str = "") -> Iterator[str]:
    """Check that the engine can score classes as the configuration wants them scored."""
    captioner = configuration.section("captioner", dataset, voter)
    scores = configuration.section("scores", dataset, voter)
    name = captioner["engine"]
    kind = scores["kind"]
    engine = configuration.engine(dataset, voter)
    if engine.decides and kind != "decisions":
        yield f"captioner.engine {name} answers scores.kind decisions alone; set it."
    elif kind == "decisions" and not (engine.decides or engine.reads_file):
        yield f"scores.kind decisions needs captioner.engine decisions, not {name}."
    elif kind == "likelihood" and not engine.has_likelihoods:
        yield f"captioner.engine {name} has no likelihoods; set scores.kind to multiple_choice."


def _captions(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that the engine writes captions if the run needs some."""
    if not configuration.engine(dataset).decides:
        return
    name = configuration.section("captioner", dataset)["engine"]
    if configuration.discovers(dataset):
        yield (
            f"captioner.engine {name} names no classes, which split.classes {DISCOVER} needs; set "
            "another engine."
        )
    for kind in configuration.caption_kinds(dataset):
        reading, others = _by_need(configuration, dataset, kind)
        without = f", or run without them: method={','.join(others)}" if others else ""
        yield (
            f"captioner.engine {name} writes no captions, which {', '.join(reading)} need; set "
            f"another engine{without}."
        )


def _by_need(
    configuration: Configuration, dataset: str, kind: str
) -> tuple[list[str], list[str]]:
    """Return the methods of the run that need captions of a kind, and the others."""
    run = configuration.methods_of(dataset)
    needs = {m: configuration.needs_captions(m, kind, dataset) for m in run}
    return [m for m in run if needs[m]], [m for m in run if not needs[m]]


def _files(configuration: Configuration, dataset: str) -> Iterator[str]:
    """Check that the user's captions and scores exist if a method of the run reads them."""
    if not configuration.engine(dataset).reads_file:
        return
    needed = {}
    for kind in configuration.caption_kinds(dataset):
        reading, others = _by_need(configuration, dataset, kind)
        without = f" To run without them, give method={','.join(others)}." if others else ""
        needed[f"captioner.{kind}s_file"] = f", for {', '.join(reading)}.{without}"
    if configuration.scores_classes(dataset):
        needed["scores.file"] = " where scores.kind is set."
    files = {key: user_file(configuration, dataset, key) for key in needed}
    if configuration.discovers(dataset):
        needed["discover.file"] = " where split.classes is discover."
        files["discover.file"] = names_file(configuration, dataset)
    for key, reason in needed.items():
        if not files[key]:
            yield f"captioner.engine file needs {key}{reason}"
        # Snakemake would go on with a table that was made of another file.
        elif not os.path.isfile(files[key][0]):
            yield f"{key} {files[key][0]} is not a file."


def refuse_slow_captions(configuration: Configuration, pending: Collection[str]) -> None:
    """Raise UserError if a large captioner would write some of the pending files without a GPU.

    An empty CUDA_VISIBLE_DEVICES asks for the CPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    for dataset in configuration.datasets:
        # All tables: a user may name one on the command line that no method needs.
        asked = [*map(Asking, TABLES), *askings(configuration, dataset)]
        for asking in asked:
            model = configuration.section("captioner", dataset, asking.voter)["model"]
            loads_model = configuration.engine(dataset, asking.voter).loads_model
            is_pending = asking.is_pending(dataset, pending)
            if loads_model and is_pending and _is_large(model):
                raise UserError(_too_slow(dataset, model))


def _too_slow(dataset: str, model: str) -> str:
    return (
        f"Dataset {dataset}: this machine has no NVIDIA GPU (nvidia-smi is not there), and "
        f"captions by {model} would take days. Let a server write them, --config "
        f"\"captioner={{'engine': 'openai', 'model': '{model}'}}\" with {URL}; "
        "bring your own, captioner.engine file; or set CUDA_VISIBLE_DEVICES= in the "
        "environment to use the CPU all the same."
    )


def _is_large(model: str) -> bool:
    """Return whether a captioner is large; a model of the hub, of unknown size, counts as large."""
    if not os.path.isdir(model):
        return True
    return sum(f.stat().st_size for f in os.scandir(model) if f.is_file()) > LARGE_MODEL
