"""open_clip's CLIP as the CLIPModel and CLIPProcessor of Hugging Face transformers.

Both are the same network if the image tower is a plain ViT pooled at its class token and the text
tower is a causal transformer pooled at the end of the text. Everything else is refused, and the
message names the part that differs.

Letters: T texts, L tokens, D embedding width.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from latteclip.clip.encode import CausalText
from latteclip.clip.finetuned import TunedModel
from latteclip.clip.model import Clip
from latteclip.core.class_templates import class_texts
from latteclip.core.errors import UserError
from latteclip.core.open_clip_import import open_clip

LEGACY_EOS = 2  # transformers' CLIP treats this id as an old mistake, and pools elsewhere
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # of PIL
BLOCK = {  # names in a layer of open_clip: in one of transformers
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
State = dict[str, torch.Tensor]
QuickGELU = open_clip.transformer.QuickGELU
ResidualAttentionBlock = open_clip.transformer.ResidualAttentionBlock
VisionTransformer = open_clip.transformer.VisionTransformer


def write(opened: TunedModel, folder: Path) -> None:
    """Write model and processor, as `from_pretrained` of CLIPModel and CLIPProcessor read them.

    Raises:
        UserError: a part of the model has no counterpart there.
    """
    clip = opened.clip
    visual: Any = clip.model.visual
    text = _text_tower(clip.model)
    _check_image_tower(visual)
    end = _end_of_text(text, clip)
    tokenizer = _tokenizer(opened, text.context_length)
    for template in opened.words.templates:
        _check_tokens(clip, tokenizer, class_texts(template, opened.classnames), end)
    model = _model(clip, text, tokenizer, end)
    image_processor = _image_processor(visual.preprocess_cfg)
    _check_features(clip, model)
    model.save_pretrained(folder)
    processor = transformers.CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)
    processor.save_pretrained(folder)


def _refuse(part: str) -> UserError:
    return UserError(
        f"--format transformers: {part}, which transformers' CLIPModel does not have; "
        "use --format open_clip."
    )


def _text_tower(model: torch.nn.Module) -> Any:
    """The module that holds the parts of a text tower like CLIP's."""
    if getattr(model, "logit_bias", None) is not None:
        raise _refuse("the model adds a bias to its logits")
    causal = CausalText.of(model)
    if causal is None:
        raise _refuse("the text tower is not a causal one pooled at the end of the text")
    tower = causal.tower
    if isinstance(tower.text_projection, nn.Linear):
        raise _refuse("the text projection has a bias")
    if tower.text_projection is None:
        raise _refuse("the text tower has no projection")
    _check_layers(tower.transformer, "text")
    return tower


def _check_image_tower(tower: Any) -> None:
    if not isinstance(tower, VisionTransformer):
        raise _refuse(f"the image tower is a {type(tower).__name__}, not a plain ViT")
    if tower.attn_pool is not None or tower.pool_type != "tok":
        raise _refuse("the image tower is not pooled at its class token")
    if not isinstance(tower.ln_pre, nn.LayerNorm):
        raise _refuse("the image tower has no norm before its layers")
    if tower.proj is None:
        raise _refuse("the image tower has no projection")
    for what, (height, width) in {"images": tower.image_size, "patches": tower.patch_size}.items():
        if height != width:
            raise _refuse(f"the {what} of the image tower are {height}x{width}, not square")
    _check_layers(tower.transformer, "image")


def _check_layers(transformer: Any, kind: str) -> None:
    for block in transformer.resblocks:
        plain = type(block) is ResidualAttentionBlock and isinstance(block.ls_1, nn.Identity)
        if not plain:
            raise _refuse(f"the {kind} tower's layers are not those of the plain transformer")
    _activation(transformer)


def _activation(transformer: Any) -> str:
    """What transformers calls the activation."""
    found = {
        (type(b.mlp.gelu), getattr(b.mlp.gelu, "approximate", "")) for b in transformer.resblocks
    }
    names = {(QuickGELU, ""): "quick_gelu", (nn.GELU, "none"): "gelu"}
    names[(nn.GELU, "tanh")] = "gelu_pytorch_tanh"
    if len(found) != 1 or (activation := found.pop()) not in names:
        raise _refuse("a tower's activation is neither GELU nor QuickGELU")
    return names[activation]


def _end_of_text(text: Any, clip: Clip) -> int:
    """The id of the end-of-text token, at which the text tower is pooled."""
    of_clip = isinstance(text, open_clip.CLIP)
    if (text.text_pool_type if of_clip else text.pool_type) == "eos":
        end = int(text.text_eos_id if of_clip else text.eos_id)
    else:  # at the largest id
        end = int(clip.tokenizer(["a"]).max())
    if end == LEGACY_EOS:
        raise _refuse(f"the end-of-text token has the id {LEGACY_EOS}")
    return end


def _tokenizer(opened: TunedModel, context_length: int) -> Any:
    """The tokenizer, of which only the padding may differ."""
    own = opened.clip.tokenizer
    if isinstance(own, open_clip.tokenizer.HFTokenizer):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            opened.folder, trust_remote_code=False
        )
    elif isinstance(own, open_clip.tokenizer.SimpleTokenizer):
        start, end = "<|startoftext|>", "<|endoftext|>"
        names = {own.sot_token_id: start, own.eot_token_id: end}
        tokenizer = transformers.CLIPTokenizer(
            vocab={names.get(number, word): number for word, number in own.encoder.items()},
            merges=list(own.bpe_ranks),
        )
    else:
        raise _refuse(f"the tokenizer is a {type(own).__name__}")
    tokenizer.model_max_length = context_length
    return tokenizer


def _check_tokens(clip: Clip, tokenizer: Any, texts: list[str], end: int) -> None:
    """Raise UserError if the text of a class has other tokens, up to the end of the text."""
    for text, ours in zip(texts, clip.tokenizer(texts).tolist(), strict=True):
        theirs = tokenizer(text, truncation=True)["input_ids"]
        if ours[: ours.index(end) + 1] != theirs[: theirs.index(end) + 1]:
            raise _refuse(f"the tokenizer reads {text!r} in a way of its own")


def _model(clip: Clip, text: Any, tokenizer: Any, end: int) -> transformers.CLIPModel:
    visual: Any = clip.model.visual
    width = visual.output_dim
    config = transformers.CLIPConfig(
        projection_dim=width,
        text_config={
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": text.context_length,
            "projection_dim": width,
            "eos_token_id": end,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **_shape(text.transformer, text.ln_final),
        },
        vision_config={
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": width,
            **_shape(visual.transformer, visual.ln_post),
        },
    )
    model: transformers.CLIPModel = transformers.CLIPModel(config).eval()
    model.load_state_dict(_state(clip.model, text))
    return model


def _shape(transformer: Any, norm: nn.LayerNorm) -> dict[str, Any]:
    """What the configuration of a tower says of its layers."""
    block = transformer.resblocks[0]
    return {
        "hidden_size": transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _activation(transformer),
        "layer_norm_eps": norm.eps,
    }


def _state(model: Any, text: Any) -> State:
    """The weights under transformers' names."""
    visual = model.visual
    return {
        "logit_scale": model.logit_scale.detach().reshape(()),
        "text_projection.weight": text.text_projection.detach().T.contiguous(),
        "visual_projection.weight": visual.proj.detach().T.contiguous(),
        "text_model.embeddings.token_embedding.weight": text.token_embedding.weight.detach(),
        "text_model.embeddings.position_embedding.weight": text.positional_embedding.detach(),
        **_renamed(text.ln_final, "text_model.final_layer_norm"),
        **_layers(text.transformer, "text_model"),
        "vision_model.embeddings.class_embedding": visual.class_embedding.detach(),
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight.detach(),
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding.detach(),
        **_renamed(visual.ln_pre, "vision_model.pre_layrnorm"),  # sic
        **_renamed(visual.ln_post, "vision_model.post_layernorm"),
        **_layers(visual.transformer, "vision_model"),
    }


def _layers(transformer: Any, prefix: str) -> State:
    state: State = {}
    for number, block in enumerate(transformer.resblocks):
        layer = f"{prefix}.encoder.layers.{number}"
        for ours, theirs in BLOCK.items():
            state |= _renamed(block.get_submodule(ours), f"{layer}.{theirs}")
        weights = block.attn.in_proj_weight.detach().chunk(3)  # [3 width, width] in one
        biases = block.attn.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            state[f"{layer}.self_attn.{name}_proj.weight"] = weight
            state[f"{layer}.self_attn.{name}_proj.bias"] = bias
    return state


def _renamed(module: nn.Module, prefix: str) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def _image_processor(preprocessing: dict[str, Any]) -> Any:
    """The evaluation transform in transformers' terms."""
    size, mode = preprocessing["size"], preprocessing["resize_mode"]
    side = size if isinstance(size, int) else size[0]
    whole = {"height": side, "width": side}
    if mode not in ("shortest", "squash"):
        raise _refuse(f"images are resized by their {mode} side and padded")
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": side} if mode == "shortest" else whole,
        do_center_crop=mode == "shortest",
        crop_size=whole,
        resample=RESAMPLING[preprocessing["interpolation"]],
        image_mean=list(preprocessing["mean"]),
        image_std=list(preprocessing["std"]),
    )


@torch.no_grad()
def _check_features(clip: Clip, model: transformers.CLIPModel) -> None:
    """Raise UserError unless both networks give the same features of two images and two texts."""
    visual: Any = clip.model.visual
    image = torch.randn(2, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))
    tokens = clip.tokenizer(["a", "a photo of a thing."])
    pairs = {
        "image": (clip.model.encode_image(image), model.get_image_features(image)),  # type: ignore[operator]
        "text": (clip.model.encode_text(tokens), model.get_text_features(tokens)),  # type: ignore[operator]
    }
    for kind, (ours, theirs) in pairs.items():
        if not torch.allclose(ours, theirs.pooler_output, rtol=1e-3, atol=1e-4):
            raise _refuse(f"the {kind} tower computes something else")
