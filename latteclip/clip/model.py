"""CLIP models over open_clip: load, encode, prepare for training, save.

Letters: B images, T texts, L tokens, C classes, D embedding width.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.checkpoint import checkpoint

from latteclip.clip import classifier as classifiers
from latteclip.clip.causal_text import CausalText, text_tower
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.prompts import class_texts
from latteclip.data.loader import Transform

CLASSIFIER = "prototypes.safetensors"
# LatteCLIP, section 4 (implementation details), in the terms of open_clip's AugmentationCfg.
AUGMENTATION = {
    "scale": (0.9, 1.0),
    "color_jitter": (0.5, 0.5, 0.5, 0.1),
    "color_jitter_prob": 0.8,
    "gray_scale_prob": 0.2,
}
LENGTH_BUCKETS = 3


@dataclass
class Clip:
    """A CLIP model with what belongs to it."""

    model: torch.nn.Module
    tokenizer: Any
    augment: Transform  # training transform, random
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
            # open_clip calls parts of aug_cfg unused that it does use, and only warns where weights
            # do not fit the activation that a model's name stands for.
            warnings.filterwarnings("ignore", message="Unused augmentation cfg items")
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            network, augment, preprocess = open_clip.create_model_and_transforms(
                model,
                pretrained=pretrained,
                device=device,
                aug_cfg=AUGMENTATION,
                require_pretrained=True,
            )
        tokenizer = open_clip.get_tokenizer(model)
        config = open_clip.get_model_config(model)
    except Exception as error:  # open_clip and the libraries below it raise errors of every kind
        raise UserError(
            f"CLIP model {model!r} with pretrained {pretrained!r} cannot be loaded "
            f"({_first_line(error)}); set clip.model and clip.pretrained to a model "
            "that open_clip lists."
        ) from error
    return Clip(network.eval(), tokenizer, augment, preprocess, config, device, precision)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def encode_images(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] to L2-normalised float32 features [B, D]."""
    if len(images) == 0:
        return _no_features(clip)
    if clip.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with devices.autocast(clip.device, clip.precision):
        features = [_encode(clip, clip.model.encode_image, part) for part in _parts(clip, images)]
    return F.normalize(torch.cat(features).float(), dim=-1)


def encode_texts(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [T, L] to L2-normalised float32 features [T, D].

    A causal tower pooled at the end-of-text token gives the same feature without the padding after
    it, so the texts are sorted by length and encoded in a few batches that are each cut to their
    longest text. Other towers get the full length.
    """
    if len(tokens) == 0:
        return _no_features(clip)
    causal = CausalText.of(clip.model)
    with devices.autocast(clip.device, clip.precision):
        if causal:
            features = _encode_by_length(clip, causal, tokens)
        else:
            parts = _parts(clip, tokens.to(clip.device))
            features = torch.cat([_encode(clip, clip.model.encode_text, part) for part in parts])
    return F.normalize(features.float(), dim=-1)


def _no_features(clip: Clip) -> torch.Tensor:
    """[0, D]: of several processes one may have nothing to encode, which some towers refuse."""
    return torch.zeros(0, clip.config["embed_dim"], device=clip.device)


def _encode_by_length(clip: Clip, tower: CausalText, tokens: torch.Tensor) -> torch.Tensor:
    lengths = tower.lengths(tokens)  # [T]
    order = lengths.argsort(stable=True)
    features = []
    for part in [part for bucket in order.chunk(LENGTH_BUCKETS) for part in _parts(clip, bucket)]:
        length = int(lengths[part].max())
        features.append(_encode(clip, tower.encode, tokens[part, :length].to(clip.device)))
    return torch.cat(features)[order.argsort()]


def _parts(clip: Clip, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows that are encoded at once."""
    if clip.micro_batch is None or not torch.is_grad_enabled():
        return (rows,)
    return rows.split(clip.micro_batch)


def _encode(clip: Clip, encode: Any, part: torch.Tensor) -> torch.Tensor:
    """`encode(part)`; of a micro-batch only the features are kept until its backward pass.

    The backward pass encodes each micro-batch again when its turn comes, with the same random
    draws, so that activations of a single one exist at any time while the loss compares all.
    """
    if clip.micro_batch is None or not torch.is_grad_enabled():
        return encode(part)
    return checkpoint(encode, part, use_reentrant=False)


def prepare_training(
    clip: Clip,
    *,
    compile: bool,  # noqa: A002
    gradient_checkpointing: bool,
    micro_batch: int | None,
) -> None:
    """Choose how both towers are trained; features and gradients stay the same up to rounding.

    Convolutional image towers get the channels-last memory format on CUDA.

    Args:
        compile: torch.compile the towers in place: the names in the state dict stay.
        gradient_checkpointing: the backward pass computes activations anew, block by block.
        micro_batch: encode so many images or texts at once, exactly (Gao et al. 2021, GradCache):
            the loss still compares the whole batch.

    Raises:
        UserError: the model or the machine cannot do it.
    """
    if micro_batch is not None:
        refuse_batch_norm(clip, "compute.micro_batch", "null", "would see parts of the batch")
    if gradient_checkpointing:
        refuse_batch_norm(
            clip, "compute.gradient_checkpointing", "false", "would count every batch twice"
        )
        _checkpoint_blocks(clip)
    visual: Any = clip.model.visual
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in visual.modules())
    if convolutions > 1 and clip.device.type == "cuda":  # a ViT has one, which cuts the patches
        clip.channels_last = True
        visual.to(memory_format=torch.channels_last)
    if compile:
        _compile(clip)
    clip.micro_batch = micro_batch


def refuse_batch_norm(clip: Clip, key: str, value: str, why: str) -> None:
    """Raise UserError where the model has BatchNorm: its layers `why`, so `key` must be `value`."""
    if any(isinstance(module, BatchNorm) for module in clip.model.modules()):
        raise UserError(
            f"{key} does not go with clip.model, whose BatchNorm layers {why}; set it to {value}."
        )


def _checkpoint_blocks(clip: Clip) -> None:
    """Switch gradient checkpointing on, and see that both towers have it: some only log."""
    model: Any = clip.model
    reason = ""
    try:
        model.set_grad_checkpointing(True)
    except (ValueError, AttributeError, NotImplementedError) as error:
        reason = f" ({error})"
    for kind, tower in {"image": model.visual, "text": text_tower(model).transformer}.items():
        if not any(
            getattr(module, "grad_checkpointing", False)  # open_clip and timm
            or getattr(module, "gradient_checkpointing", False)  # transformers
            for module in tower.modules()
        ):
            raise UserError(
                f"compute.gradient_checkpointing does not go with clip.model, whose {kind} tower "
                f"{type(tower).__name__} does not support it{reason}; set it to false."
            )


def _compile(clip: Clip) -> None:
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=clip.device))
    except RuntimeError as error:
        raise UserError(
            f"compute.compile: torch.compile does not work on this machine ({_first_line(error)}); "
            "install a C++ compiler or set it to false."
        ) from error
    model: Any = clip.model
    model.visual.compile()
    text_tower(model).transformer.compile(dynamic=True)


@torch.no_grad()
def class_embeddings(clip: Clip, template: str, classnames: list[str]) -> torch.Tensor:
    """W0: row c = f_txt(T(c)), [C, D], L2-normalised (LatteCLIP, section 3.1)."""
    return encode_texts(clip, clip.tokenizer(class_texts(template, classnames)))


def save(
    clip: Clip, classifier: torch.Tensor, classnames: list[str], template: str, folder: Path
) -> None:
    """Write a folder that stock open_clip loads by `local-dir:`, and the classifier beside it.

    A Hugging Face text tower's own configuration is not in it: open_clip reads that from where the
    model's `hf_model_name` says, a repo of the hub or a folder.

    Args:
        classifier: [C, D] float32, one row per class: prototypes or text embeddings.
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
    described = {"classnames": classnames, "template": template}
    classifiers.save_classifier(folder / CLASSIFIER, classifier, described)
