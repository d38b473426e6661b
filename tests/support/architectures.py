"""CLIPs that people use, as open_clip describes them, of fewer and narrower layers.

The image tower is built by the function of its real name; what is smaller is told to it.
"""

import json
import zlib

import open_clip
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models import register_model

SIDE = 64
TEXT = {"width": 32, "heads": 2, "layers": 2}
SMALL_VIT = {"img_size": SIDE, "depth": 2, "embed_dim": 48, "num_heads": 3}


def _smaller(name, **options):
    """timm's model of that name with other options, under a name of its own; the latter."""

    def make(pretrained=False, **kwargs):
        return timm.create_model(name, pretrained=False, **{**kwargs, **options})

    make.__name__ = f"{name}_smaller"
    return register_model(make).__name__


# open_clip's name: (width of its features here, changes of its image tower).
ARCHITECTURES = {
    "ViT-B-16-SigLIP2-256": (48, ("vit_base_patch16_siglip_256", SMALL_VIT)),
    "MobileCLIP-S1": (
        48,
        (
            "fastvit_mci1",
            {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)},
        ),
    ),
    "ViT-B-32-256": (40, {"layers": 2, "width": 48, "head_width": 16}),
    "EVA02-B-16": (48, ("eva02_base_patch16_clip_224", SMALL_VIT)),
}


def described(name, folder):
    """open_clip's model_cfg of a name, made smaller; a tokenizer of the hub becomes one of ours."""
    config = open_clip.get_model_config(name)
    width, tower = ARCHITECTURES[name]
    config["embed_dim"] = width
    vision, text = {**config["vision_cfg"]}, {**config["text_cfg"], **TEXT}
    if isinstance(tower, dict):
        vision |= tower
    else:
        assert vision["timm_model_name"] == tower[0]
        vision |= {"timm_model_name": _smaller(tower[0], **tower[1]), "image_size": SIDE}
    if "hf_tokenizer_name" in text:
        text |= {"hf_tokenizer_name": str(folder), "vocab_size": write_gemma_tokenizer(folder)}
    return {**config, "vision_cfg": vision, "text_cfg": text}


def write_gemma_tokenizer(folder):
    """A tokenizer of lower-case letters, of the class of SigLIP 2's; the size of its vocabulary."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = transformers.GemmaTokenizer(vocab={word: n for n, word in enumerate(words)})
    tokenizer.padding_side = "right"  # as SigLIP 2's says
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_architecture(name, folder):
    """A random model as a folder; the name by which it is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    config = described(name, folder)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3} if "SigLIP" in name else {}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    torch.manual_seed(zlib.crc32(name.encode()))
    model = open_clip.create_model(f"local-dir:{folder}")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
