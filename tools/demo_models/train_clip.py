"""Train the demo's tiny CLIP, the stand-in for a web-scale one.

    python tools/demo_models/train_clip.py

It sees the clean source domain and gaps up to LARGEST_GAP, with captions of its own small
vocabulary, and never the demo's seeds. `latteclip/demo/README.md` says how well it does.
"""

import argparse
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate_textures as textures
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from descriptions import short_captions
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from training import (
    MEAN,
    STD,
    attribute_heads,
    attribute_loss,
    attribute_targets,
    flip,
    generate_range,
    normalise,
    optimise,
    optimiser,
    to_channels,
)
from transformers import PreTrainedTokenizerFast

from latteclip.config.layers import PACKAGE
from latteclip.core.devices import keep_big_buffers
from latteclip.core.files import replacing, write_json

log = logging.getLogger(__name__)

FOLDER = PACKAGE / "demo" / "models" / "clip"
POOL_SEED = 1000
LARGEST_GAP = 0.3
POOL = 40_000  # images
BATCH = 64
LEARNING_RATE = 1e-3
VOCABULARY = 512
CONTEXT = 32  # tokens
WIDTH = 128
ATTRIBUTE_WEIGHT = 0.3  # of the attribute losses beside the contrastive one


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE like CLIP's: lower case, <start> text <end>, <end> the largest id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<start>", "<end>"])
    ends = [
        (token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")
    ]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return open_clip's model_cfg."""
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": textures.SIDE,
            "layers": 4,
            "width": WIDTH,
            "head_width": 32,
            "patch_size": 8,
            "patch_dropout": 0.5,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            # Any name: open_clip then reads its own folder.
            "hf_tokenizer_name": "tokenizer",
            "width": WIDTH,
            "heads": 4,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": tokenizer.eos_token_id,
            "pad_id": tokenizer.pad_token_id,
        },
    }


def build(config: dict[str, Any]) -> open_clip.CLIP:
    """Return a fresh model of that model_cfg."""
    return open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg={
            k: v for k, v in config["text_cfg"].items() if k != "hf_tokenizer_name"
        },
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return tokens [T, CONTEXT], as open_clip's HFTokenizer does."""
    tokens: torch.Tensor = tokenizer(
        texts,
        return_tensors="pt",
        max_length=CONTEXT,
        padding="max_length",
        truncation=True,
    ).input_ids
    return tokens


class Pool:
    """The training images, their captions and attributes."""

    def __init__(self, n: int, largest_gap: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.images, attributes = generate_range(n, largest_gap, seed)
        self.captions = [short_captions(a) for a in attributes]
        self.targets = attribute_targets(attributes)

    def draw(
        self, n: int
    ) -> tuple[torch.Tensor, list[str], dict[str, torch.Tensor]]:
        """Draw pixels [n, 3, 64, 64], a caption of each image, and its attributes by index [n]."""
        batch = self.rng.integers(len(self.images), size=n)
        texts = [self.rng.choice(self.captions[i]) for i in batch]
        targets = {name: target[batch] for name, target in self.targets.items()}
        return (
            normalise(to_channels(flip(self.images[batch], self.rng))),
            texts,
            targets,
        )


def losses(
    model: open_clip.CLIP,
    heads: torch.nn.ModuleDict,
    tokenizer: PreTrainedTokenizerFast,
    pool: Pool,
) -> Iterator[torch.Tensor]:
    """Yield CLIP's contrastive loss plus the loss of the attributes on image features."""
    contrastive = ClipLoss()
    while True:
        pixels, texts, targets = pool.draw(BATCH)
        seen = model.encode_image(pixels)  # [BATCH, WIDTH]
        text = model.encode_text(tokenize(tokenizer, texts), normalize=True)
        loss = contrastive(
            F.normalize(seen, dim=-1), text, model.logit_scale.exp()
        )
        yield loss + ATTRIBUTE_WEIGHT * attribute_loss(heads, seen, targets)


def train(
    steps: int,
) -> tuple[open_clip.CLIP, PreTrainedTokenizerFast, dict[str, Any]]:
    """Return the trained model, its tokenizer and its model_cfg."""
    torch.manual_seed(0)
    pool = Pool(POOL, LARGEST_GAP, POOL_SEED)
    tokenizer = train_tokenizer(
        [text for texts in pool.captions[::8] for text in texts]
    )
    config = model_config(tokenizer)
    model = build(config)
    heads = attribute_heads(WIDTH)
    log.info("%.2fM parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    model.train()
    optimizer = optimiser([model, heads], weight_decay=0.1)
    steps_taken = optimise(
        optimizer, losses(model, heads, tokenizer, pool), steps, LEARNING_RATE
    )
    for _ in steps_taken:
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    return model.eval(), tokenizer, config


def save(
    model: open_clip.CLIP,
    tokenizer: PreTrainedTokenizerFast,
    config: dict[str, Any],
    folder: Path,
) -> None:
    """Write a folder that stock open_clip loads by `local-dir:`, weights in float16."""
    with replacing(folder, overwrite=True) as new:
        tokenizer.save_pretrained(new)
        state = {
            name: tensor.half().contiguous()
            for name, tensor in model.state_dict().items()
        }
        save_file(state, new / "open_clip_model.safetensors")
        preprocessing = {
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        write_json(
            new / "open_clip_config.json",
            {"model_cfg": config, "preprocess_cfg": preprocessing},
        )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_big_buffers()
    torch.set_num_threads(2)
    model, tokenizer, config = train(arguments.steps)
    save(model, tokenizer, config, arguments.output)


if __name__ == "__main__":
    main()
