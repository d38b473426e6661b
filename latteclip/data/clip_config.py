"""Read the configuration of a CLIP from a folder or from the hub, which may be a stranger's.

open_clip's own classes refuse unknown keys. They check no value, so the values are checked here
that can name code to run or a place to fetch from, or that take hours or all memory.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

from latteclip.config.hub_names import CLIP_CONFIG, FOLDER, HUB, TEXT_TOWER
from latteclip.core.errors import UserError
from latteclip.core.files import read_object

CONFIG, TOWER = CLIP_CONFIG, TEXT_TOWER
TOKENIZER_FILES = ("config.json", "tokenizer_config.json")
PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class, by version
# Sections that open_clip hands on to torch, transformers or nltk, and the keys they may have.
HANDED_ON = {
    "act_kwargs": {"approximate"},
    "norm_kwargs": {"eps"},
    "tokenizer_kwargs": {"clean", "strip_sep_token", "language"},
}
WEIGHTS = "open_clip_model.safetensors"  # open_clip prefers it to all other files
PICKLES = (".bin", ".pth")  # suffixes of weights that open_clip reads where that file is missing
FOREIGN_REMEDY = "take another copy of the model, or one from a source that you trust"
MAX_LAYERS, MAX_PIXELS, MAX_NUMBER = 1024, 4096, 10**8
# Keys of a text tower's configuration that decide how or where it is computed, or name things.
NOT_OF_THE_NETWORK = {"_name_or_path", "architectures", "dtype", "transformers_version"}


def read(model: str) -> dict[str, Any]:
    """Return the section `model_cfg` of an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.

    Raises:
        UserError: open_clip has no such name, or the configuration is broken or refused.
    """
    from latteclip.core.open_clip_import import open_clip

    if not is_foreign(model):
        config: dict[str, Any] | None = open_clip.get_model_config(model)
        if config is None:
            raise UserError(f"open_clip lists no such name; {remedy(model)}.")
        return config
    path = _fetched(model)
    whole = read_object(path, ["model_cfg"], FOREIGN_REMEDY)
    try:
        check(whole)
    except UserError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}; {FOREIGN_REMEDY}.") from None
    if model.startswith(FOLDER):
        _refuse_code(path.parent)
        _refuse_pickle(path.parent)
    found: dict[str, Any] = whole["model_cfg"]
    return found


def is_foreign(model: str) -> bool:
    """Return whether the configuration is no part of open_clip."""
    return model.startswith((HUB, FOLDER))


def remedy(model: str) -> str:
    """Return the remedy for a model that cannot be loaded."""
    if is_foreign(model):
        return FOREIGN_REMEDY
    return "set clip.model and clip.pretrained to a model that open_clip lists"


def _fetched(model: str) -> Path:
    if model.startswith(FOLDER):
        return Path(model.removeprefix(FOLDER)) / CONFIG
    from latteclip.core.open_clip_import import open_clip

    fetch = open_clip.pretrained.download_pretrained_from_hf
    return Path(fetch(model.removeprefix(HUB), filename=CONFIG))


def _refuse_code(folder: Path) -> None:
    """Raise UserError where a tokenizer of the folder names code to run."""
    for name in TOKENIZER_FILES:
        if (folder / name).exists() and "auto_map" in read_object(
            folder / name, [], FOREIGN_REMEDY
        ):
            raise UserError(
                f"{folder / name} names code to run (auto_map), which is refused; {FOREIGN_REMEDY}."
            )


def _refuse_pickle(folder: Path) -> None:
    """Raise UserError where open_clip would read weights from a pickle."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles and not (folder / WEIGHTS).exists():
        raise UserError(
            f"{folder / pickles[0]} is a pickle, which is never read; convert the weights to "
            f"{WEIGHTS}, or take a copy of the model that has it."
        )


def hub_weights(model: str) -> Path:
    """Return the weights of `hf-hub:<repo>` in the hub's cache, fetched where they are missing.

    They are safetensors: a repo without them is refused, since a pickle is never read.

    Raises:
        FileNotFoundError: the repo has none, or the hub does not give them.
    """
    from latteclip.core.open_clip_import import open_clip

    fetch = open_clip.pretrained.download_pretrained_from_hf
    return Path(fetch(model.removeprefix(HUB), filename=WEIGHTS))


def check(whole: dict[str, Any]) -> None:
    """Raise UserError where a configuration has an unknown key or a dangerous value."""
    from latteclip.core.open_clip_import import open_clip

    _check_numbers(whole)
    model = _section(whole, "model_cfg")
    image, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    for name, cls, section in (
        ("vision_cfg", open_clip.CLIPVisionCfg, image),
        ("text_cfg", open_clip.CLIPTextCfg, text),
    ):
        try:
            cls(**section)
        except TypeError as error:
            raise UserError(f"model_cfg.{name}: {error}.") from None
        for key, known in HANDED_ON.items():
            for unknown in _section(section, key).keys() - known:
                raise UserError(f"model_cfg.{name}.{key}.{unknown} is refused.")
    _check_timm(image.get("timm_model_name"))
    _check_preprocessing(_section(whole, "preprocess_cfg"))


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key) or {}
    if not isinstance(section, dict):
        raise UserError(f"{key} is not an object.")
    return section


def _check_timm(name: Any) -> None:
    """Raise UserError for a name that is not in timm's list: it may be an address or a folder."""
    if name is None:
        return
    import timm

    if not re.fullmatch(r"\w[\w.]*", str(name)) or not timm.is_model(name):
        raise UserError(f"timm has no model {name!r} (timm_model_name).")


def _check_preprocessing(section: dict[str, Any]) -> None:
    if section.get("mode") not in (None, "RGB"):
        raise UserError(f"preprocess_cfg.mode is {section['mode']!r}, not RGB.")
    for name in ("mean", "std"):
        values = section.get(name)
        if values is not None and not (
            isinstance(values, list)
            and len(values) == 3
            and all(type(value) in (int, float) for value in values)
            and (name == "mean" or min(values) > 0)
        ):
            raise UserError(f"preprocess_cfg.{name} must be three numbers, not {values}.")
    colour = section.get("fill_color")
    if colour is not None and (type(colour) is not int or not 0 <= colour <= 255):
        raise UserError(f"preprocess_cfg.fill_color {colour!r} is not in 0 to 255.")


def _check_numbers(value: Any, key: str = "") -> None:
    """Raise UserError for numbers that no network has, and that would take hours or all memory."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        name = key.rpartition(".")[2]
        least, most = -MAX_NUMBER, MAX_NUMBER
        if name.endswith("layers"):
            least, most = 1, MAX_LAYERS
        elif name in ("image_size", "size", "patch_size"):
            least, most = 1, MAX_PIXELS
        if not least <= value <= most:
            raise UserError(f"{key} {value} is out of bounds.")


def text_tower(model: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a text tower of transformers, None for open_clip's own tower.

    A model folder holds it in `text_tower`. The hub is asked only for a model that the user named
    by open_clip or the hub. Keys that describe no network (code, kernels, precision) are left out.

    Raises:
        UserError: it is missing, or not of a kind that open_clip builds.
    """
    name = config["text_cfg"].get("hf_model_name")
    if not name:
        return None
    from transformers import CONFIG_MAPPING

    from latteclip.core.open_clip_import import open_clip

    path = _tower_file(model, name)
    values = read_object(path, ["model_type"], FOREIGN_REMEDY)
    kind, known_kinds = values["model_type"], list(open_clip.hf_configs.arch_dict)
    if kind not in known_kinds:
        raise UserError(
            f"{path} is of the kind {kind!r}, none of {', '.join(known_kinds)}; {FOREIGN_REMEDY}."
        )
    _check_numbers(values)
    known = CONFIG_MAPPING[kind]().to_dict().keys() - NOT_OF_THE_NETWORK
    return {key: value for key, value in values.items() if key in known} | {"model_type": kind}


def _tower_file(model: str, name: str) -> Path:
    if not model.startswith(FOLDER):
        import huggingface_hub

        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    folder = Path(model.removeprefix(FOLDER)) / TOWER
    if not folder.exists():
        raise UserError(
            f"the text tower is {name!r} of transformers, whose configuration a model folder must "
            f"hold: put its config.json into {folder}."
        )
    return folder / "config.json"


def tokenizer(model: str, config: dict[str, Any]) -> Any:
    """Return open_clip's tokenizer of a model. It runs no code of a stranger.

    A folder's tokenizer is read from the folder, without the network.
    """
    from latteclip.core.open_clip_import import open_clip, plain_tokenizers

    strict = {"trust_remote_code": False, "local_files_only": model.startswith(FOLDER)}
    of_transformers = config["text_cfg"].get("hf_tokenizer_name")
    with plain_tokenizers() if _is_plain(model) else contextlib.nullcontext():
        tokenize = open_clip.get_tokenizer(model, **(strict if of_transformers else {}))
    try:
        tokenize(["a"])  # a broken one fails here and not after a training
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust below tokenizers, no Exception
            raise
        raise ValueError(f"its tokenizer fails: {error}") from None
    return tokenize


def _is_plain(model: str) -> bool:
    """Return whether a model folder holds a tokenizer that needs tokenizer.json alone."""
    path = Path(model.removeprefix(FOLDER)) / TOKENIZER_FILES[1]
    if not model.startswith(FOLDER) or not path.exists():
        return False
    values = read_object(path, [], FOREIGN_REMEDY)
    return values.get("tokenizer_class") in PLAIN_TOKENIZERS
