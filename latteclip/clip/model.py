"""CLIP models over open_clip: load and save.

Letters: C classes, D embedding width.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core import devices
from latteclip.core.class_words import ClassWords
from latteclip.core.errors import UserError, first_line

CLASSIFIER = "prototypes.safetensors"
Transform = Callable[[Image.Image], torch.Tensor]


@dataclass
class Clip:
    """A CLIP model with what belongs to it."""

    model: torch.nn.Module
    tokenizer: Any
    preprocess: Transform  # evaluation transform
    config: dict[str, Any]  # open_clip's model_cfg
    device: torch.device
    precision: str = "bf16"  # of both towers on CUDA, one of devices.PRECISIONS
    micro_batch: int | None = None  # images or texts encoded at once where gradients are wanted
    channels_last: bool = False  # memory format of the image tower and its images


def load(model: str, pretrained: str | None, device: torch.device, precision: str = "bf16") -> Clip:
    """Load weights in float32, in evaluation mode.

    Args:
        model: an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.
        pretrained: an open_clip tag or a weights file; must be None with the two prefixes.
        device: where the model is to live.
        precision: bf16, fp16 or float32, in which a GPU encodes; a CPU encodes in float32.

    Raises:
        UserError: no such model, tag or folder, or its weights cannot be had; or no such precision
            on this device.
    """
    devices.check_precision(device, precision)
    if not model.startswith(("hf-hub:", "local-dir:")):
        model = model.replace("/", "-")  # ViT-B/32, as OpenAI writes it
    try:
        with warnings.catch_warnings():
            # open_clip only warns where weights do not fit the activation that a name stands for.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            network, _, preprocess = open_clip.create_model_and_transforms(
                model,
                pretrained=pretrained,
                device=device,
                require_pretrained=True,
            )
        tokenizer = open_clip.get_tokenizer(model)
        config = open_clip.get_model_config(model)
    except Exception as error:  # open_clip and the libraries below it raise errors of every kind
        raise UserError(
            f"CLIP model {model!r} with pretrained {pretrained!r} cannot be loaded "
            f"({first_line(error)}); set clip.model and clip.pretrained to a model "
            "that open_clip lists."
        ) from error
    return Clip(network.eval(), tokenizer, preprocess, config, device, precision)


def save(
    clip: Clip,
    classifier: Classifier,
    classnames: list[str],
    words: ClassWords | str,
    folder: Path,
) -> None:
    """Write a folder that stock open_clip loads by `local-dir:`, and the classifier beside it.

    A Hugging Face text tower's own configuration is not in it: open_clip reads that from where the
    model's `hf_model_name` says, a repo of the hub or a folder.

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
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": clip.config, "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
    words = ClassWords.of(words) if isinstance(words, str) else words
    described = {"classnames": classnames, **words.described}
    save_classifier(folder / CLASSIFIER, classifier, described)
