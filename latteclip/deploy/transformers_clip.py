"""Convert open_clip's CLIP to the CLIPModel and CLIPProcessor of Hugging Face transformers.

Both are the same network if the image tower is a plain ViT pooled at its class token and the text
tower is a causal transformer pooled at the end of the text. Everything else is refused.
"""

from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from torch import nn

from latteclip.clip.encode import CausalText, text_tower
from latteclip.clip.model import Clip, FinetunedModel
from latteclip.core.class_templates import class_texts
from latteclip.core.errors import UserError

RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's numbers of the filters
CROPPED = {"shortest": True, "squash": False}  # by resize mode
# Parts of the names of open_clip's weights, in this order: of transformers'.
RENAMED = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # sic
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
}
CHECKED = 100  # class texts, of which both networks have to give the same features
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
ACTIVATIONS = {
    (open_clip.transformer.QuickGELU, None): "quick_gelu",
    (nn.GELU, "none"): "gelu",
    (nn.GELU, "tanh"): "gelu_pytorch_tanh",
}


def write(opened: FinetunedModel, folder: Path) -> None:
    """Write model and processor for the `from_pretrained` of transformers, or raise UserError."""
    clip = opened.clip
    causal: Any = CausalText.of(clip.model)  # None for another text tower
    visual: Any = clip.model.visual
    texts = class_texts(opened.class_templates.template, opened.classnames)
    try:
        tokenizer = _tokenizer(opened)
        model = _model(clip, causal, tokenizer)
        images = _image_processor(visual.preprocess_cfg, clip.input_size[0])
        _check_features(clip, model, tokenizer, texts[:CHECKED])
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"{opened.folder} has another network than transformers' CLIPModel, or reads images or "
            "texts otherwise; use --format open_clip or onnx in place of transformers."
        ) from error
    model.save_pretrained(folder)
    transformers.CLIPProcessor(
        image_processor=images, tokenizer=tokenizer
    ).save_pretrained(folder)


def _tokenizer(opened: FinetunedModel) -> Any:
    """Return the tokenizer of transformers, which differs in the padding at most."""
    given = opened.clip.tokenizer
    if isinstance(given, open_clip.tokenizer.HFTokenizer):
        load = transformers.AutoTokenizer.from_pretrained
        tokenizer = load(opened.folder, trust_remote_code=False)
    else:
        names = {
            given.sot_token_id: "<|startoftext|>",
            given.eot_token_id: "<|endoftext|>",
        }
        tokenizer = transformers.CLIPTokenizer(
            vocab={
                names.get(number, word): number
                for word, number in given.encoder.items()
            },
            merges=list(given.bpe_ranks),
        )
    tokenizer.model_max_length = text_tower(opened.clip.model).context_length
    return tokenizer


def _model(clip: Clip, causal: CausalText, tokenizer: Any) -> Any:
    visual: Any = clip.model.visual
    text = causal.tower
    width = visual.output_dim
    shortest = clip.tokenizer(["a"])
    end = shortest[0, causal.lengths(shortest)[0] - 1]
    config = transformers.CLIPConfig(
        projection_dim=width,
        text_config={
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": text.context_length,
            "projection_dim": width,
            "eos_token_id": int(end),
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
    model = transformers.CLIPModel(config).eval()
    model.load_state_dict(_state(clip.model), strict=True)
    return model


def _shape(transformer: Any, norm: nn.LayerNorm) -> dict[str, Any]:
    block = transformer.resblocks[0]
    activation = type(block.mlp.gelu), getattr(block.mlp.gelu, "approximate", None)
    return {
        "hidden_size": transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": ACTIVATIONS[activation],
        "layer_norm_eps": norm.eps,
    }


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("text.")
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        if ".attn.in_proj_" in name:  # [3 width, width] in one
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[
                    name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")
                ] = part
        else:
            state[name] = tensor.T if name in TRANSPOSED else tensor
    return state


def _image_processor(preprocessing: dict[str, Any], side: int) -> Any:
    is_cropped = CROPPED[preprocessing["resize_mode"]]
    whole = {"height": side, "width": side}
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": side} if is_cropped else whole,
        do_center_crop=is_cropped,
        crop_size=whole,
        resample=RESAMPLING[preprocessing["interpolation"]],
        image_mean=list(preprocessing["mean"]),
        image_std=list(preprocessing["std"]),
    )


@torch.no_grad()
def _check_features(
    clip: Clip, model: Any, tokenizer: Any, texts: list[str]
) -> None:
    """Raise ValueError if images or texts get other features, because of tokens or networks."""
    network: Any = clip.model
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *network.visual.image_size, generator=draw)
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    pairs = (
        (network.encode_image(image), model.get_image_features(image)),
        (
            network.encode_text(clip.tokenizer(texts)),
            model.get_text_features(**tokens),
        ),
    )
    for ours, theirs in pairs:
        if not torch.allclose(ours, theirs.pooler_output, rtol=1e-3, atol=1e-4):
            raise ValueError("it computes other features")
