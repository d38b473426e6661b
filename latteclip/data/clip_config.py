"""The configuration of a CLIP from a folder or from the hub: what it may say.

It is a stranger's, so it may hold the keys below and no others: sizes and kinds of layers. What
open_clip would hand on to other libraries, where a value can name code to run or a place to fetch
from, is checked or replaced. Names of open_clip's own list are taken as open_clip has them.
"""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latteclip.config.hub_names import CLIP_CONFIG, FOLDER, HUB, TEXT_TOWER
from latteclip.core.errors import UserError
from latteclip.core.files import read_object
from latteclip.core.settings import from_values

CONFIG, TOWER = CLIP_CONFIG, TEXT_TOWER
TOKENIZER_FILES = ("config.json", "tokenizer_config.json")
PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class, by version
WEIGHTS = "open_clip_model.safetensors"  # open_clip prefers it to all other files
PICKLES = (".bin", ".pth")  # suffixes of weights that open_clip reads where that file is missing
FOREIGN_REMEDY = "take another copy of the model, or one from a source that you trust"
MOST_LAYERS, MOST_PIXELS, MOST = 1024, 4096, 10**8
# Keys of a text tower's configuration that decide how or where it is computed, or name things.
NOT_OF_THE_NETWORK = {"_name_or_path", "architectures", "dtype", "transformers_version"}


@dataclass(frozen=True)
class Activation:
    """What is handed to GELU."""

    approximate: Literal["none", "tanh"] = "none"


@dataclass(frozen=True)
class Norm:
    """What is handed to LayerNorm."""

    eps: float = 1e-5


@dataclass(frozen=True)
class Tokenizer:
    """What is handed to open_clip's tokenizers, of which most would go on to transformers."""

    clean: Literal["canonicalize", "lower", "whitespace"] = "lower"
    strip_sep_token: bool = False
    language: str | None = None


@dataclass(frozen=True)
class Layers:
    """The keys that towers of both kinds have."""

    width: int = 512
    mlp_ratio: float = 4.0
    ls_init_value: float | None = None
    pool_type: str = "tok"
    final_ln_after_pool: bool = False
    output_tokens: bool = False
    act_kwargs: Activation | None = None
    norm_kwargs: Norm | None = None
    block_type: str | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False


@dataclass(frozen=True)
class VisionTower(Layers):
    """The section `vision_cfg`."""

    layers: int | list[int] = 12
    head_width: int = 64
    patch_size: int | None = 16
    image_size: int | list[int] = 224
    patch_dropout: float = 0.0
    attentional_pool: bool = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8
    no_ln_pre: bool = False
    pos_embed_type: str = "learnable"
    timm_model_name: str | None = None
    timm_model_pretrained: bool = False
    timm_pool: str | None = "avg"
    timm_proj: str | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None


@dataclass(frozen=True)
class TextTower(Layers):
    """The section `text_cfg`."""

    context_length: int = 77
    vocab_size: int = 49408
    hf_tokenizer_name: str | None = None
    tokenizer_mode: str | None = None
    tokenizer_kwargs: Tokenizer = Tokenizer()
    heads: int = 8
    layers: int = 12
    embed_cls: bool = False
    pad_id: int = 0
    eos_id: int = 2
    no_causal_mask: bool = False
    proj_bias: bool = False
    proj_type: str = "linear"
    hf_model_name: str | None = None
    hf_model_pretrained: bool = True
    hf_proj_type: str | None = "mlp"
    hf_pooler_type: str | None = "mean_pooler"


@dataclass(frozen=True)
class TextDecoder(TextTower):
    """The section `multimodal_cfg`."""

    dim_head: int = 64
    n_queries: int = 256
    attn_pooler_heads: int = 8


@dataclass(frozen=True)
class ClipConfig:
    """The section `model_cfg`."""

    embed_dim: int
    vision_cfg: VisionTower
    text_cfg: TextTower
    multimodal_cfg: TextDecoder | None = None
    custom_text: bool = False
    quick_gelu: bool = False
    init_logit_scale: float = math.log(1 / 0.07)
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """The section `preprocess_cfg`, of which open_clip reads these keys alone."""

    size: int | list[int] = 224
    mode: Literal["RGB"] = "RGB"
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


def read(model: str) -> dict[str, Any]:
    """The section `model_cfg` of an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.

    Raises:
        UserError: open_clip has no such name, or the configuration is broken or holds what it may
            not.
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
    """Whether the configuration is no part of open_clip."""
    return model.startswith((HUB, FOLDER))


def remedy(model: str) -> str:
    """What to do about a model that cannot be loaded."""
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
    """Raise UserError where a tokenizer of the folder names code of its own."""
    for name in TOKENIZER_FILES:
        if (folder / name).exists() and "auto_map" in read_object(
            folder / name, [], FOREIGN_REMEDY
        ):
            raise UserError(
                f"{folder / name} names code of its own (auto_map), which is never run; "
                f"{FOREIGN_REMEDY}."
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
    """Raise UserError where a configuration holds a key or a value that it may not."""
    if not isinstance(whole["model_cfg"], dict):
        raise UserError("model_cfg is not an object.")
    _check_numbers(whole)
    config = from_values(ClipConfig, whole["model_cfg"], "model_cfg")
    _check_timm(config.vision_cfg.timm_model_name)
    preprocessing = whole.get("preprocess_cfg", {})
    if not isinstance(preprocessing, dict):
        raise UserError("preprocess_cfg is not an object.")
    known = Preprocessing.__dataclass_fields__
    given = {k: v for k, v in preprocessing.items() if k in known and v is not None}
    _check_colours(from_values(Preprocessing, given, "preprocess_cfg"))


def _check_timm(name: str | None) -> None:
    """A name of timm's own list; others may be addresses or folders."""
    if name is None:
        return
    import timm

    if not re.fullmatch(r"\w[\w.]*", name) or not timm.is_model(name):
        raise UserError(f"timm has no model {name!r} (timm_model_name).")


def _check_colours(section: Preprocessing) -> None:
    for name, values in (("mean", section.mean), ("std", section.std)):
        if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            raise UserError(f"preprocess_cfg.{name} must be three numbers, not {values}.")
    if not 0 <= section.fill_color <= 255:
        raise UserError(f"preprocess_cfg.fill_color {section.fill_color} is not in 0 to 255.")


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
        most = MOST
        if name.endswith("layers"):
            most = MOST_LAYERS
        elif name in ("image_size", "size", "patch_size"):
            most = MOST_PIXELS
        if not abs(value) <= most or (most != MOST and value < 1):
            raise UserError(f"{key} {value} is out of bounds.")


def text_tower(model: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of a text tower of transformers; None where the tower is open_clip's.

    A model folder holds it in `text_tower`; where it does not, as of version 0.1, the hub's cache
    is looked into. The hub itself is asked only for a model that the user named by open_clip or
    the hub. What is no property of the network (code, kernels, precision) is left out.

    Raises:
        UserError: it cannot be had, or is not of a kind that open_clip builds.
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
    import huggingface_hub

    if not model.startswith(FOLDER):
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    folder = Path(model.removeprefix(FOLDER)) / TOWER
    if folder.exists():
        return folder / "config.json"
    with contextlib.suppress(ValueError):  # a name that the hub could not have
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached)
    raise UserError(
        f"the text tower is {name!r} of transformers, whose configuration a model folder must "
        f"hold: put its config.json into {folder}."
    )


def tokenizer(model: str, config: dict[str, Any]) -> Any:
    """open_clip's tokenizer of a model; that of a folder lies there, and none runs its own code."""
    from latteclip.core.open_clip_import import open_clip, plain_tokenizers

    strict = {"trust_remote_code": False, "local_files_only": model.startswith(FOLDER)}
    of_transformers = config["text_cfg"].get("hf_tokenizer_name")
    with plain_tokenizers() if _is_plain(model) else contextlib.nullcontext():
        made = open_clip.get_tokenizer(model, **(strict if of_transformers else {}))
    try:
        made(["a"])  # what it lacks shows here and not after a training
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust below tokenizers, no Exception
            raise
        raise ValueError(f"its tokenizer fails: {error}") from None
    return made


def _is_plain(model: str) -> bool:
    """Whether a model folder holds a tokenizer that is all in tokenizer.json."""
    path = Path(model.removeprefix(FOLDER)) / TOKENIZER_FILES[1]
    if not model.startswith(FOLDER) or not path.exists():
        return False
    values = read_object(path, [], FOREIGN_REMEDY)
    return values.get("tokenizer_class") in PLAIN_TOKENIZERS
