"""Train the demo's tiny LLaVA, the stand-in for a 7B captioner.

    python tools/demo_models/train_llava.py

Like LLaVA it joins a CLIP vision tower (it starts from the demo's CLIP) and a Llama. It sees gaps
up to LARGEST_GAP, more than CLIP did but less than the demo's, and never the demo's seeds.
`latteclip/demo/README.md` says how well it does.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import generate_textures as textures
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import train_clip
import training
from descriptions import describe, describe_group
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from latteclip.config.layers import PACKAGE
from latteclip.core.devices import keep_big_buffers
from latteclip.core.files import replacing

log = logging.getLogger(__name__)

FOLDER = PACKAGE / "demo" / "models" / "llava"
POOL_SEED = 2000
LARGEST_GAP = 0.6
POOL = 32_000  # images
SIDE = 128  # pixels of a picture
PATCH = 16  # pixels
CELL = 62  # pixels of an image in a group picture
WIDTH = 128
VOCABULARY = 512
CONTEXT = 256  # tokens
LEARNING_RATE = 1e-3
# The prompts of LatteCLIP for DTD.
IMAGE_PROMPT = "Describe the texture in the photo concisely, less than 20 words."
GROUP_PROMPT = (
    "Describe the common visual attributes of the textures in all the photos concisely, "
    "less than 20 words."
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\n"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %} {% endif %}{% endfor %}ASSISTANT:"
)
# The patches of each quadrant of a picture, [4, 16]: where a group picture has its four images.
QUADRANTS = torch.arange(64).view(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)


# --- pictures ----------------------------------------------------------------------------------


def enlarge(images: np.ndarray) -> torch.Tensor:
    """Convert [B, 64, 64, 3] as the image processor does, to uint8 [B, 3, 128, 128]."""
    return F.interpolate(
        training.to_channels(images), size=SIDE, mode="bicubic", antialias=True
    )


def to_cells(images: np.ndarray) -> np.ndarray:
    """Convert [N, 64, 64, 3] to the images of a group picture, [N, 62, 62, 3]."""
    return np.stack(
        [
            np.asarray(
                Image.fromarray(image).resize(
                    (CELL, CELL), Image.Resampling.LANCZOS
                )
            )
            for image in images
        ]
    )


def group_pictures(cells: np.ndarray) -> torch.Tensor:
    """Place [B, 4, 62, 62, 3] on black 2x2 grids, uint8 [B, 3, 128, 128]."""
    pictures = np.zeros((len(cells), SIDE, SIDE, 3), np.uint8)
    second = SIDE - CELL
    for member, (top, left) in enumerate(
        [(0, 0), (0, second), (second, 0), (second, second)]
    ):
        pictures[:, top : top + CELL, left : left + CELL] = cells[:, member]
    return training.to_channels(pictures)


class Pool:
    """The training images, their attributes, and random batches of pictures of them."""

    def __init__(self, n: int, largest_gap: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.images, self.attributes = training.generate_range(
            n, largest_gap, seed
        )
        self.cells = to_cells(self.images)
        self.descriptions = [describe(a) for a in self.attributes]
        self.targets = training.attribute_targets(self.attributes)
        labels = self.targets["classname"].numpy()
        self.members = [
            np.flatnonzero(labels == c) for c in range(len(textures.CLASSNAMES))
        ]

    def draw_group(self) -> np.ndarray:
        """Draw four images of one pseudo-label: of its class with a random purity, else of any."""
        members = self.members[self.rng.integers(len(self.members))]
        purity = self.rng.uniform(0.3, 1.0)
        right = self.rng.choice(members, 4)
        any_class = self.rng.integers(len(self.images), size=4)
        return np.where(self.rng.random(4) < purity, right, any_class)

    def describe_group(self, group: np.ndarray) -> str:
        """Return the true description of four images, by their numbers."""
        return describe_group([self.attributes[i] for i in group])

    def draw(
        self, n_images: int, n_groups: int
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Draw pictures uint8 [n_images + n_groups, 3, 128, 128], with the images on them."""
        singles = self.rng.integers(len(self.images), size=n_images)
        # [n_groups, 4].
        groups = np.stack([self.draw_group() for _ in range(n_groups)])
        single_pictures = enlarge(training.flip(self.images[singles], self.rng))
        cells = training.flip(self.cells[groups.reshape(-1)], self.rng).reshape(
            n_groups, 4, CELL, CELL, 3
        )
        return torch.cat([single_pictures, group_pictures(cells)]), singles, groups


# --- the model ---------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the four special tokens first, and the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return a processor that resizes to 128 px (bicubic) and inserts 64 image tokens."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[training.MEAN] * 3,
        image_std=[training.STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
) -> LlavaForConditionalGeneration:
    """Return a new model. LLaVA reads the last vision layer but one, so nothing reads the fifth."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(
        config
    ).float()
    return model


@torch.no_grad()
def start_from_clip(tower: Any, folder: Path) -> None:
    """Copy the demo's CLIP vision tower. A patch of 8 px at 64 px becomes one of 16 px at 128."""
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    source = clip.visual
    embeddings = tower.embeddings
    embeddings.class_embedding.copy_(source.class_embedding)
    embeddings.position_embedding.weight.copy_(source.positional_embedding)
    spread = (
        source.conv1.weight.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    )
    embeddings.patch_embedding.weight.copy_(spread)
    tower.pre_layrnorm.load_state_dict(source.ln_pre.state_dict())
    for block, layer in zip(
        source.transformer.resblocks, tower.encoder.layers, strict=False
    ):
        layer.layer_norm1.load_state_dict(block.ln_1.state_dict())
        layer.layer_norm2.load_state_dict(block.ln_2.state_dict())
        layer.mlp.fc1.load_state_dict(block.mlp.c_fc.state_dict())
        layer.mlp.fc2.load_state_dict(block.mlp.c_proj.state_dict())
        attention = layer.self_attn
        attention.out_proj.load_state_dict(block.attn.out_proj.state_dict())
        for projection, weight, bias in zip(
            (attention.q_proj, attention.k_proj, attention.v_proj),
            block.attn.in_proj_weight.chunk(3),
            block.attn.in_proj_bias.chunk(3),
            strict=True,
        ):
            projection.weight.copy_(weight)
            projection.bias.copy_(bias)


def patch_features(
    tower: Any, pixels: torch.Tensor, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Return features [B, 64, WIDTH] that LLaVA reads, or those of the `visible` patches only."""
    hidden: torch.Tensor = tower.pre_layrnorm(tower.embeddings(pixels))
    if visible is not None:
        hidden = torch.cat([hidden[:, :1], hidden[:, 1:][:, visible]], dim=1)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


# --- training ----------------------------------------------------------------------------------


def attribute_losses(
    tower: Any, heads: torch.nn.ModuleDict, pool: Pool
) -> Iterator[torch.Tensor]:
    """Train the first stage: each quadrant predicts its attributes from half of its patches."""
    while True:
        pictures, singles, groups = pool.draw(48, 24)
        visible = torch.cat(
            [quadrant[torch.randperm(16)[:8]] for quadrant in QUADRANTS]
        )
        features = patch_features(tower, training.normalise(pictures), visible)
        features = features.reshape(-1, 8, WIDTH).mean(1)  # [B * 4, WIDTH]
        owners = np.concatenate([singles.repeat(4), groups.reshape(-1)])
        targets = {name: target[owners] for name, target in pool.targets.items()}
        yield training.attribute_loss(
            heads, F.layer_norm(features, (WIDTH,)), targets
        )


def prompt_tokens(processor: LlavaProcessor, prompt: str) -> list[int]:
    """Return the chat prompt's tokens, with the 64 image tokens in it."""
    content: Any = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    image_tokens = "<image>" * (SIDE // PATCH) ** 2
    tokens: list[int] = processor.tokenizer(
        text.replace("<image>", image_tokens)
    ).input_ids
    return tokens


def pad(
    answers: Sequence[tuple[list[int], list[int]]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens [B, L] of (prompt, answer) pairs, padded right, and answer masks [B, L]."""
    length = max(len(prompt) + len(answer) for prompt, answer in answers)
    tokens = torch.full((len(answers), length), pad_id)
    is_answer = torch.zeros(len(answers), length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(answers):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        is_answer[row, len(prompt) : end] = True
    return tokens, is_answer


def caption_loss(
    model: LlavaForConditionalGeneration,
    pixels: torch.Tensor,
    tokens: torch.Tensor,
    is_answer: torch.Tensor,
) -> torch.Tensor:
    """Return the cross-entropy of the answers' tokens; `tokens` and `is_answer` are [B, L].

    As model.forward has it, without the vision layer and the logits that nothing reads. Padding
    is on the right, where a causal model does not see it.
    """
    images = model.model.multi_modal_projector(
        patch_features(model.model.vision_tower, pixels)
    )
    embedded = model.get_input_embeddings()(tokens)
    is_image = (tokens == model.config.image_token_index)[..., None].expand_as(
        embedded
    )
    embedded = embedded.masked_scatter(is_image, images)
    hidden = model.model.language_model(
        inputs_embeds=embedded, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][is_answer[:, 1:]])
    return F.cross_entropy(logits, tokens[:, 1:][is_answer[:, 1:]])


def caption_losses(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pool: Pool
) -> Iterator[torch.Tensor]:
    """Train the second stage: answer both prompts."""
    tokenizer = processor.tokenizer
    image_prompt = prompt_tokens(processor, IMAGE_PROMPT)
    group_prompt = prompt_tokens(processor, GROUP_PROMPT)

    def answer(text: str) -> list[int]:
        return [*tokenizer(" " + text).input_ids, tokenizer.eos_token_id]

    while True:
        pictures, singles, groups = pool.draw(24, 16)
        answers = [(image_prompt, answer(pool.descriptions[i])) for i in singles]
        answers += [(group_prompt, answer(pool.describe_group(g))) for g in groups]
        tokens, is_answer = pad(answers, tokenizer.pad_token_id)
        yield caption_loss(model, training.normalise(pictures), tokens, is_answer)


def train(
    attribute_steps: int, caption_steps: int, clip_folder: Path
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Train both stages. Returns the model in evaluation mode."""
    torch.manual_seed(0)
    pool = Pool(POOL, LARGEST_GAP, POOL_SEED)
    groups = [pool.describe_group(pool.draw_group()) for _ in range(3000)]
    answers = [" " + text for text in pool.descriptions[::8] + groups]
    prompts = ["USER: ", IMAGE_PROMPT, GROUP_PROMPT, " ASSISTANT:"]
    tokenizer = train_tokenizer(
        answers + 500 * prompts
    )  # often enough to become whole words
    processor = build_processor(tokenizer)
    model = build_model(tokenizer)
    tower = model.model.vision_tower
    start_from_clip(tower, clip_folder)
    log.info("%.2fM parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    heads = training.attribute_heads(WIDTH)
    model.train()
    stages = [
        ([tower, heads], attribute_losses(tower, heads, pool), attribute_steps),
        ([model], caption_losses(model, processor, pool), caption_steps),
    ]
    for modules, losses, steps in stages:
        for _ in training.optimise(
            training.optimiser(modules, weight_decay=0.05),
            losses,
            steps,
            LEARNING_RATE,
        ):
            pass
    return model.eval(), processor


# --- saving ------------------------------------------------------------------------------------


def name_for_both(weights: Path) -> None:
    """Rename the vision weights: transformers 5 reads the names of version 4, vLLM only those."""
    new = "vision_tower."
    old = "vision_tower.vision_model."
    state = {
        name.replace(new, old): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(state, weights, metadata={"format": "pt"})


def save(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path
) -> None:
    """Write a folder that stock transformers and vLLM load, weights in float16."""
    with replacing(folder, overwrite=True) as new:
        processor.save_pretrained(new)
        model.half().save_pretrained(new)
        name_for_both(new / "model.safetensors")
    model.float()


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attribute-steps", type=int, default=1800)
    parser.add_argument("--caption-steps", type=int, default=2000)
    parser.add_argument("--clip", type=Path, default=train_clip.FOLDER)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_big_buffers()
    torch.set_num_threads(2)
    model, processor = train(
        arguments.attribute_steps, arguments.caption_steps, arguments.clip
    )
    save(model, processor, arguments.output)


if __name__ == "__main__":
    main()
