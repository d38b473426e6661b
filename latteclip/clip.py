"""CLIP models over open_clip: load, encode, save.

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
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transformer import text_global_pool
from safetensors import safe_open
from safetensors.torch import save_file

from latteclip import devices
from latteclip.errors import UserError
from latteclip.images import Transform
from latteclip.prompts import class_texts

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


def load(model: str, pretrained: str | None, device: torch.device) -> Clip:
    """Load weights in float32, in evaluation mode.

    Args:
        model: an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`.
        pretrained: an open_clip tag or a weights file; must be None with the two prefixes.

    Raises:
        UserError: no such model, tag or folder, or its weights cannot be had.
    """
    try:
        with warnings.catch_warnings():  # open_clip calls parts of aug_cfg unused that it does use
            warnings.filterwarnings("ignore", message="Unused augmentation cfg items")
            network, augment, preprocess = open_clip.create_model_and_transforms(
                model,
                pretrained=pretrained,
                device=device,
                aug_cfg=AUGMENTATION,
                require_pretrained=True,
            )
        tokenizer = open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"CLIP model {model!r} with pretrained {pretrained!r} cannot be loaded "
            f"({error}); set clip.model and clip.pretrained to a model that open_clip lists."
        ) from None
    config = open_clip.get_model_config(model)
    return Clip(network.eval(), tokenizer, augment, preprocess, config, device)


def encode_images(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] to L2-normalised float32 features [B, D]."""
    with devices.autocast(clip.device):
        features = clip.model.encode_image(images)  # type: ignore[operator]
    return F.normalize(features.float(), dim=-1)


def encode_texts(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [T, L] to L2-normalised float32 features [T, D].

    A causal tower pooled at the end-of-text token gives the same feature without the padding after
    it, so the texts are sorted by length and encoded in a few batches that are each cut to their
    longest text. Other towers get the full length.
    """
    with devices.autocast(clip.device):
        if isinstance(clip.model, open_clip.CLIP) and clip.model.attn_mask is not None:
            features = _encode_by_length(clip.model, tokens, clip.device)
        else:
            features = clip.model.encode_text(tokens.to(clip.device))  # type: ignore[operator]
    return F.normalize(features.float(), dim=-1)


def _encode_by_length(
    model: open_clip.CLIP, tokens: torch.Tensor, device: torch.device
) -> torch.Tensor:
    lengths = _end_of_text(model, tokens) + 1  # [T]
    order = lengths.argsort(stable=True)
    features = [
        _encode_causal(model, tokens[part, : int(lengths[part].max())].to(device))
        for part in order.chunk(LENGTH_BUCKETS)
    ]
    return torch.cat(features)[order.argsort()]


def _end_of_text(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Position [T] of the token at which `text_global_pool` reads the feature."""
    if model.text_pool_type == "argmax":
        return tokens.argmax(dim=-1)
    if model.text_pool_type == "eos":
        return (tokens == model.text_eos_id).int().argmax(dim=-1)
    return torch.full((len(tokens),), tokens.shape[1] - 1)


def _encode_causal(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """open_clip.CLIP.encode_text, which insists on the full context, for L tokens of it."""
    length = tokens.shape[1]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = text_global_pool(
        model.ln_final(x), tokens, model.text_pool_type, eos_token_id=model.text_eos_id
    )  # [T, width]
    if model.text_projection is None:
        return x
    if isinstance(model.text_projection, torch.nn.Linear):
        return model.text_projection(x)
    return x @ model.text_projection


@torch.no_grad()
def class_embeddings(clip: Clip, template: str, classnames: list[str]) -> torch.Tensor:
    """W0: row c = f_txt(T(c)), [C, D], L2-normalised (LatteCLIP, section 3.1)."""
    return encode_texts(clip, clip.tokenizer(class_texts(template, classnames)))


def save(
    clip: Clip, classifier: torch.Tensor, classnames: list[str], template: str, folder: Path
) -> None:
    """Write a folder that stock open_clip loads by `local-dir:`, and the classifier beside it.

    Args:
        classifier: [C, D] float32, one row a class: prototypes or text embeddings.
    """
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in clip.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    save_config_for_hf(clip.model, folder / "open_clip_config.json", model_config=clip.config)
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
    # One metadata key: safetensors writes several in random order, and equal runs must be equal.
    described = json.dumps({"classnames": classnames, "template": template})
    save_file(
        {"prototypes": classifier.detach().float().cpu().contiguous()},
        folder / CLASSIFIER,
        metadata={"classifier": described},
    )


def load_classifier(folder: str | Path) -> tuple[torch.Tensor, list[str]]:
    """The classifier [C, D] of a saved model, and its class names."""
    with safe_open(Path(folder) / CLASSIFIER, framework="pt") as file:
        described = json.loads(file.metadata()["classifier"])
        return file.get_tensor("prototypes"), described["classnames"]
