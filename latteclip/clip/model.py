"""Load and save CLIP models of open_clip.

Letters: C classes, D embedding width.
"""

import contextlib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.hub_names import FOLDER
from latteclip.core import devices, hashing
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import write_json
from latteclip.core.open_clip_import import open_clip, with_transformers
from latteclip.data import clip_config

log = logging.getLogger(__name__)
CLASSIFIER = "prototypes.safetensors"
REMEDY = "delete it and rerun its stage, or take another copy"
Transform = Callable[[Image.Image], torch.Tensor]


@dataclass
class Clip:
    """A CLIP model with its tokenizer and transform."""

    model: torch.nn.Module
    get_tokenizer: Callable[[], Any]  # slow, and not every stage has texts
    preprocess: Transform  # evaluation transform
    config: dict[str, Any]  # open_clip's model_cfg
    device: torch.device
    precision: str = "bf16"  # of both towers on CUDA, one of devices.PRECISIONS
    micro_batch: int | None = None  # images or texts encoded at once with gradients
    at_once: int | None = None  # the same without gradients, once memory ran out
    channels_last: bool = False  # memory format of the image tower and its images
    text_tower: dict[str, Any] | None = None  # configuration of one of transformers

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens [T, L]."""
        return self.get_tokenizer()


def load(model: str, pretrained: str | None, device: torch.device, precision: str = "bf16") -> Clip:
    """Load weights in float32, in evaluation mode.

    `latteclip.data.clip_config` says what a folder or a repo may hold. Its code is never run, and a
    folder is loaded without the network.

    Args:
        model: an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.
        pretrained: an open_clip tag or a weights file; must be None with the two prefixes.
        device: of the model.
        precision: bf16, fp16 or float32, in which a GPU encodes. A CPU encodes in float32.

    Raises:
        UserError: no such model, tag or folder, its weights are missing or damaged, or the device
            lacks the precision. The tokenizer raises UserError when it is first used.
    """
    devices.check_precision(device, precision)
    if not clip_config.is_foreign(model):
        model = model.replace("/", "-")  # ViT-B/32, as OpenAI writes it
    with _loading(model, pretrained):
        config = clip_config.read(model)
        tower = clip_config.text_tower(model, config)
        with _text_tower_overrides(config, tower) as overrides:
            if clip_config.is_foreign(model):
                check_size(model, config, overrides)
            network, preprocess = _created(model, pretrained, device, overrides)
    check_finite(model, network)
    get_tokenizer = partial(_tokenizer, model, pretrained, config)
    return Clip(
        network.eval(), get_tokenizer, preprocess, config, device, precision, text_tower=tower
    )


@contextlib.contextmanager
def _loading(model: str, pretrained: str | None) -> Iterator[None]:
    """Turn every error inside into a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"CLIP model {model!r} cannot be loaded: {error}") from error
    except Exception as error:  # open_clip and the libraries below it raise errors of every kind
        raise UserError(
            f"CLIP model {model!r} with pretrained {pretrained!r} cannot be loaded "
            f"({first_line(error).rstrip('.')}); {clip_config.remedy(model)}."
        ) from error


def _tokenizer(model: str, pretrained: str | None, config: dict[str, Any]) -> Any:
    with _loading(model, pretrained):
        return clip_config.tokenizer(model, config)


@contextlib.contextmanager
def _text_tower_overrides(
    config: dict[str, Any], tower: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Yield arguments of open_clip that name the configuration of a text tower."""
    if tower is None:
        yield {}
        return
    with_transformers()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(tower), encoding="utf-8")
        local = {"hf_model_name": folder, "hf_model_pretrained": False}
        yield {"text_cfg": {**config["text_cfg"], **local}}


def _created(
    model: str, pretrained: str | None, device: torch.device, overrides: dict[str, Any]
) -> tuple[torch.nn.Module, Transform]:
    """Return the network with its weights, and its evaluation transform."""
    with warnings.catch_warnings():
        # open_clip only warns if weights were trained with another activation.
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        network, _, preprocess = open_clip.create_model_and_transforms(
            model,
            pretrained=pretrained,
            device=device,
            require_pretrained=True,
            pretrained_text=False,
            **overrides,
        )
    return network, preprocess


def check_size(model: str, config: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Raise UserError if an untrusted network has more parameters than its files can hold.

    It is built on the meta device, so that no configuration can exhaust the memory. This takes a
    second and is skipped for networks that are small by their configuration.

    Args:
        model: `hf-hub:<repo>` or `local-dir:<folder>`.
        config: the section `model_cfg` of it.
        overrides: further arguments of open_clip.
    """
    if model.startswith(FOLDER):
        files = [path for path in Path(model.removeprefix(FOLDER)).iterdir() if path.is_file()]
    else:
        files = [clip_config.hub_weights(model)]
    size = sum(path.stat().st_size for path in files)
    if _at_most(config) <= size:  # each takes at least a byte
        return
    with torch.device("meta"), _quiet():
        network = open_clip.create_model(
            model, load_weights=False, device="meta", pretrained_text=False, **overrides
        )
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    if numbers > size:
        raise UserError(
            f"its network has {numbers} numbers, and its files have {size} bytes; "
            f"{clip_config.remedy(model)}."
        )


def _at_most(config: dict[str, Any]) -> float:
    """Return an upper bound of the parameters of two plain transformers, else infinity."""
    image = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    text = open_clip.CLIPTextCfg(**config["text_cfg"])
    others = (
        image.timm_model_name,
        image.attentional_pool,
        text.hf_model_name,
        config.get("multimodal_cfg"),
    )
    if any(others) or isinstance(image.layers, list) or not image.patch_size:
        return math.inf
    side = max(image.image_size) if isinstance(image.image_size, list) else image.image_size
    patch = image.patch_size
    of_image = _of_tower(image, (side // patch) ** 2 + 3 * patch**2 + config["embed_dim"])
    of_text = _of_tower(text, text.vocab_size + text.context_length + config["embed_dim"])
    return 2 * (of_image + of_text)


def _of_tower(tower: Any, rows: int) -> float:
    """Return the parameters of a transformer without biases and norms.

    Args:
        tower: its configuration.
        rows: of its embeddings.
    """
    return float(tower.width * (rows + tower.layers * tower.width * (4 + 2 * tower.mlp_ratio)))


def check_finite(model: str, network: torch.nn.Module) -> None:
    """Raise UserError if a weight is not a finite number."""
    for name, tensor in network.state_dict().items():
        is_number = tensor.is_floating_point() and tensor.numel()
        # Both extremes of NaN are NaN. Checking each number takes fifteen times as long.
        if is_number and not all(extreme.isfinite() for extreme in tensor.aminmax()):
            raise UserError(
                f"The weights {name} of CLIP model {model!r} are not finite numbers: the file is "
                "damaged, or its training failed; take another copy, or train again."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings, here that there are no weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def save(
    clip: Clip,
    classifier: Classifier,
    classnames: list[str],
    words: ClassTemplates | str,
    folder: Path,
) -> None:
    """Write a folder that stock open_clip loads by `local-dir:`, and the classifier beside it.

    The SHA-256 sums of all files are written last.

    Args:
        classifier: of the C classes, for the features of this model.
        classnames: of the C classes.
        words: templates and synonyms of the classes, or one template.
        folder: a new one.
    """
    save_network(clip, folder)
    words = ClassTemplates.of(words) if isinstance(words, str) else words
    described = {"classnames": classnames, **words.described}
    save_classifier(folder / CLASSIFIER, classifier, described)
    hashing.write_sums(folder)


def save_network(clip: Clip, folder: Path) -> None:
    """Write a new folder that stock open_clip loads by `local-dir:`.

    The configuration of a text tower of transformers is in it as well, for this program. Stock
    open_clip reads that from where `hf_model_name` says.
    """
    folder.mkdir(parents=True)
    model: Any = clip.model
    state = {  # copies: safetensors takes neither shared memory nor other memory formats
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / clip_config.WEIGHTS)
    config = {"model_cfg": clip.config, "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / clip_config.CONFIG).write_text(json.dumps(config, indent=2))
    if clip.text_tower is not None:
        write_json(folder / clip_config.TOWER / "config.json", clip.text_tower)
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
