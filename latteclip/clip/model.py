"""CLIP models over open_clip: load and save.

Letters: C classes, D embedding width.
"""

import contextlib
import json
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

from latteclip.clip import weights
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.model_names import FOLDER
from latteclip.core import checksums, devices
from latteclip.core.class_words import ClassWords
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import write_json
from latteclip.core.lazily import open_clip, with_transformers
from latteclip.data import clip_config

CLASSIFIER = "prototypes.safetensors"
Transform = Callable[[Image.Image], torch.Tensor]


@dataclass
class Clip:
    """A CLIP model with what belongs to it."""

    model: torch.nn.Module
    get_tokenizer: Callable[[], Any]  # costly: a stage may do without texts
    preprocess: Transform  # evaluation transform
    config: dict[str, Any]  # open_clip's model_cfg
    device: torch.device
    precision: str = "bf16"  # of both towers on CUDA, one of devices.PRECISIONS
    micro_batch: int | None = None  # images or texts encoded at once where gradients are wanted
    at_once: int | None = None  # at most so many where no gradients are wanted: memory ran out
    channels_last: bool = False  # memory format of the image tower and its images
    text_tower: dict[str, Any] | None = None  # configuration of one of transformers

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens [T, L]."""
        return self.get_tokenizer()


def load(model: str, pretrained: str | None, device: torch.device, precision: str = "bf16") -> Clip:
    """Load weights in float32, in evaluation mode.

    A folder or a repo may hold what `latteclip.data.clip_config` allows, and runs nothing of its
    own; a folder is loaded without the network. Weights are compared with their SHA-256 where it is
    known: in a folder by its SHA256SUMS, of the hub by the name in its cache.

    Args:
        model: an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.
        pretrained: an open_clip tag or a weights file; must be None with the two prefixes.
        device: where the model is to live.
        precision: bf16, fp16 or float32, in which a GPU encodes; a CPU encodes in float32.

    Raises:
        UserError: no such model, tag or folder, or its weights cannot be had or are damaged; or no
            such precision on this device. The tokenizer raises one where it cannot be had, once it
            is asked for.
    """
    devices.check_precision(device, precision)
    if not clip_config.is_foreign(model):
        model = model.replace("/", "-")  # ViT-B/32, as OpenAI writes it
    elif model.startswith(FOLDER):
        weights.verify_folder(Path(model.removeprefix(FOLDER)))
    with _loading(model, pretrained):
        config = clip_config.read(model)
        tower = clip_config.text_tower(model, config)
        weights.verify_cached(model, pretrained)
        with _told(config, tower) as told:
            if clip_config.is_foreign(model):
                weights.check_size(model, config, told)
            network, preprocess = _created(model, pretrained, device, told)
    weights.check_finite(model, network)
    get_tokenizer = partial(_tokenizer, model, pretrained, config)
    return Clip(
        network.eval(), get_tokenizer, preprocess, config, device, precision, text_tower=tower
    )


@contextlib.contextmanager
def _loading(model: str, pretrained: str | None) -> Iterator[None]:
    """Make a UserError of whatever goes wrong inside."""
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
def _told(config: dict[str, Any], tower: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """What open_clip is told besides the name: where the text tower's configuration lies."""
    if tower is None:
        yield {}
        return
    with_transformers()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(tower), encoding="utf-8")
        own = {"hf_model_name": folder, "hf_model_pretrained": False}
        yield {"text_cfg": {**config["text_cfg"], **own}}


def _created(
    model: str, pretrained: str | None, device: torch.device, told: dict[str, Any]
) -> tuple[torch.nn.Module, Transform]:
    """The network with its weights, and its evaluation transform."""
    with warnings.catch_warnings():
        # open_clip only warns where weights do not fit the activation that a name stands for.
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        network, _, preprocess = open_clip.create_model_and_transforms(
            model,
            pretrained=pretrained,
            device=device,
            require_pretrained=True,
            pretrained_text=False,
            **told,
        )
    return network, preprocess


def save(
    clip: Clip,
    classifier: Classifier,
    classnames: list[str],
    words: ClassWords | str,
    folder: Path,
) -> None:
    """Write a folder that stock open_clip loads by `local-dir:`, and the classifier beside it.

    The configuration of a text tower of transformers is in it as well, for this program; stock
    open_clip reads that from where `hf_model_name` says. The SHA-256 sums of all are written last.

    Args:
        classifier: of the C classes, for the features of this model.
        classnames: of the C classes.
        words: how they were put into words, or the one template.
        folder: a new one.
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
    words = ClassWords.of(words) if isinstance(words, str) else words
    described = {"classnames": classnames, **words.described}
    save_classifier(folder / CLASSIFIER, classifier, described)
    checksums.write(folder)
