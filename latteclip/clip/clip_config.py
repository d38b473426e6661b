"""Read the configuration of a CLIP from a folder or from the hub, which may be a stranger's.

open_clip's own classes refuse unknown keys. They check no value, so the values are checked here
that can name code to run or a place to fetch from, or that take hours or all memory.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import open_clip
from pydantic import Field

from latteclip.clip.model_files import CLIP_CONFIG
from latteclip.config.models import FOLDER, HUB
from latteclip.core.errors import UserError
from latteclip.core.files import from_values, read_object
from latteclip.core.terminal import one_line

T = TypeVar("T")
# Sections that open_clip hands on to torch, transformers or nltk, and the keys they may have.
HANDED_ON = {
    "act_kwargs": {"approximate"},
    "norm_kwargs": {"eps"},
    "tokenizer_kwargs": {"clean", "strip_sep_token", "language"},
}
# Folder in a model's folder: configuration of a text tower of transformers.
TEXT_TOWER = "text_tower"
WEIGHTS = "open_clip_model.safetensors"  # open_clip prefers it to all other files
# Suffixes of weights that open_clip reads where that file is missing.
PICKLES = (".bin", ".pth")
REMEDY = "take another copy of the model, or another model"
MAX_LAYERS = 1024
MAX_PIXELS = 4096
PIXELS = ("image_size", "img_size", "size", "patch_size")
MAX_NUMBER = 10**8
# Mean of a colour, as a network is trained on it.
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Spread = Annotated[float, Field(ge=0.001, le=1000)]
# Keys of a text tower's configuration that decide how or where it is computed, or name things.
NOT_OF_THE_NETWORK = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
}


@dataclass(frozen=True)
class Preprocessing:
    """The keys of `preprocess_cfg` whose values open_clip does not check."""

    mode: Literal["RGB"] = "RGB"
    mean: tuple[Mean, Mean, Mean] | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] = 0


def read(model: str) -> dict[str, Any]:
    """Return the section `model_cfg` of an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.

    Raises UserError where open_clip has no such name, or the configuration is broken or refused.
    """
    if not is_foreign(model):
        config: dict[str, Any] | None = open_clip.get_model_config(model)
        if config is None:
            raise UserError(f"open_clip lists no such name; {REMEDY}.")
        return config
    folder = Path(model.removeprefix(FOLDER))
    is_folder = model.startswith(FOLDER)
    path = folder / CLIP_CONFIG if is_folder else hub_file(model, CLIP_CONFIG)
    whole = read_object(path, ["model_cfg"], REMEDY)
    try:
        check(whole)
    except UserError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}; {REMEDY}.") from None
    if is_folder:
        _refuse_code_pickles_and_pipes(folder)
    return dict(whole["model_cfg"])


def is_foreign(model: str) -> bool:
    """Return whether the configuration is no part of open_clip."""
    return model.startswith((HUB, FOLDER))


def hub_file(model: str, name: str = WEIGHTS) -> Path:
    """Return a file of `hf-hub:<repo>` in the hub's cache, fetched where it is missing.

    A repo without weights in safetensors is a FileNotFoundError: no pickle is read.
    """
    fetch = open_clip.pretrained.download_pretrained_from_hf
    return Path(fetch(model.removeprefix(HUB), filename=name))


def files(model: str) -> list[Path]:
    """Return the files that may have the weights of a model of a folder or the hub."""
    if model.startswith(HUB):
        return [hub_file(model)]
    folder = Path(model.removeprefix(FOLDER))
    return [path for path in folder.iterdir() if path.is_file()]


def _refuse_code_pickles_and_pipes(folder: Path) -> None:
    """Raise UserError where a tokenizer names code to run, or open_clip would read a pickle.

    A pipe or a device is refused as well, for reading it may take for ever.
    """
    for path in folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is neither a file nor a folder; {REMEDY}.")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.exists() and "auto_map" in read_object(path, [], REMEDY):
            raise UserError(f"{path} names code to run (auto_map); {REMEDY}.")
    pickles = [path for path in folder.glob("*") if path.suffix in PICKLES]
    if pickles and not (folder / WEIGHTS).exists():
        raise UserError(
            f"{pickles[0]} is a pickle, which is never read; convert the weights to {WEIGHTS}, or "
            "take a copy of the model that has it."
        )


def check(whole: dict[str, Any]) -> None:
    """Raise UserError where a configuration has an unknown key or a dangerous value."""
    check_numbers(whole)
    model = section(whole, "model_cfg")
    towers = {
        "vision_cfg": open_clip.CLIPVisionCfg,
        "text_cfg": open_clip.CLIPTextCfg,
    }
    for name, cls in towers.items():
        tower = section(model, name)
        try:
            cls(**tower)
        except TypeError as error:
            raise UserError(f"model_cfg.{name}: {one_line(error)}.") from None
        for key, known in HANDED_ON.items():
            for unknown in section(tower, key).keys() - known:
                raise UserError(
                    f"model_cfg.{name}.{key}.{one_line(unknown)} is refused."
                )
    timm_model = section(model, "vision_cfg").get("timm_model_name")
    if timm_model is not None:
        check_timm_name(timm_model)
    given = section(whole, "preprocess_cfg")
    known_values(Preprocessing, given, "preprocess_cfg")


def check_timm_name(name: object) -> None:
    """Raise UserError for a name that timm does not list: it may be an address or a folder."""
    import timm  # not at the top: it takes a second

    if not re.fullmatch(r"\w[\w.]*", str(name)) or not timm.is_model(str(name)):
        raise UserError(f"timm has no model {name!r}.")


def known_values(cls: type[T], given: dict[str, Any], place: str) -> T:
    """Build a dataclass from the values that it has fields for, or raise UserError."""
    fields: Any = cls.__dataclass_fields__  # type: ignore[attr-defined]
    known = {k: given[k] for k in fields if given.get(k) is not None}
    return from_values(cls, known, place)


def section(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a section of a configuration, empty where there is none."""
    nested = values.get(key) or {}
    if not isinstance(nested, dict):
        raise UserError(f"{key} is not an object.")
    return nested


def check_numbers(value: Any, key: str = "") -> None:
    """Raise UserError for numbers that no network has, and that would take hours or all memory."""
    if isinstance(value, dict):
        for name, inner in value.items():
            check_numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            check_numbers(inner, key)
    elif isinstance(value, int | float):
        most = MAX_PIXELS if key in PIXELS else MAX_NUMBER
        if key.endswith("layers"):
            most = MAX_LAYERS
        if not abs(value) <= most:  # also of no number
            raise UserError(f"{one_line(key)} {value} is out of bounds.")


def text_tower(model: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a text tower of transformers, None for open_clip's own tower.

    A model folder holds it in `text_tower`. The hub is asked only for a model that the user named
    by open_clip or the hub. Keys that describe no network (code, kernels, precision) are left out.
    Raises UserError where it is missing, or not of a kind that open_clip builds.
    """
    name = config["text_cfg"].get("hf_model_name")
    if not name:
        return None
    import huggingface_hub
    from transformers import CONFIG_MAPPING

    path = Path(model.removeprefix(FOLDER)) / TEXT_TOWER / "config.json"
    if not model.startswith(FOLDER):
        path = Path(huggingface_hub.hf_hub_download(name, "config.json"))
    elif not path.parent.exists():
        raise UserError(
            f"the text tower is {name!r} of transformers, whose configuration a model folder must "
            f"hold: put its config.json into {path.parent}."
        )
    values = read_object(path, ["model_type"], REMEDY)
    kind = values["model_type"]
    kinds = list(open_clip.hf_configs.arch_dict)
    if kind not in kinds:
        raise UserError(
            f"{path} is of the kind {kind!r}, none of {', '.join(kinds)}; {REMEDY}."
        )
    check_numbers(values)
    known = CONFIG_MAPPING[kind]().to_dict().keys() - NOT_OF_THE_NETWORK
    return {key: value for key, value in values.items() if key in known} | {
        "model_type": kind
    }


def tokenizer(model: str, config: dict[str, Any]) -> Any:
    """Return open_clip's tokenizer, without a stranger's code, and of a folder without network."""
    options = {
        "trust_remote_code": False,
        "local_files_only": model.startswith(FOLDER),
    }
    of_transformers = config["text_cfg"].get("hf_tokenizer_name")
    tokenize = open_clip.get_tokenizer(
        model, **(options if of_transformers else {})
    )
    try:
        tokenize(["a"])  # a broken one fails here and not after a training
    except BaseException as error:
        # The Rust code of tokenizers raises it, and it is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its tokenizer fails: {error}") from None
    return tokenize
