"""Tiny models and datasets that tests run on, made on the spot from random numbers."""

import zlib
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image

from latteclip import tables
from latteclip.clip import Clip

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DEMO_CLIP = ROOT / "latteclip" / "demo" / "models" / "clip"
DEMO_LLAVA = ROOT / "latteclip" / "demo" / "models" / "llava"
CONTEXT, VOCABULARY, SIDE, WIDTH = 16, 50, 32, 24
START, END = VOCABULARY - 2, VOCABULARY - 1
TEMPLATE = "a photo of a {}."


def tokenize(texts):
    """One token a word, between START and END, padded with 0: LongTensor [T, CONTEXT]."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        words = [1 + zlib.crc32(word.encode()) % (START - 1) for word in text.split()]
        words = [START, *words[: CONTEXT - 2], END]
        row[: len(words)] = torch.tensor(words)
    return tokens


def tiny_clip(seed=0, *, tower=open_clip.CLIP, **text):
    """A random CLIP; `text` overrides its CLIPTextCfg."""
    torch.manual_seed(seed)
    model = tower(
        WIDTH,
        CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=SIDE),
        CLIPTextCfg(
            **{
                "context_length": CONTEXT,
                "vocab_size": VOCABULARY,
                "width": 40,
                "heads": 4,
                "layers": 2,
                "eos_id": END,
                **text,
            }
        ),
    )
    for parameter in model.parameters():  # fresh biases are zero, which would hide mistakes
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    # A fresh tower hardly tells texts apart, which would leave the mixer's margins to rounding.
    embedding = model.token_embedding if tower is open_clip.CLIP else model.text.token_embedding
    embedding.weight.data *= 30
    transform = open_clip.image_transform(SIDE, is_train=False)
    return Clip(model.eval(), tokenize, transform, transform, {}, torch.device("cpu"))


def write_pictures(folder, n, *, seed=0, size=(70, 64)):
    """n PNGs of random coloured noise; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(n):
        colour = rng.integers(0, 200, 3)
        noise = rng.integers(0, 56, (size[1], size[0], 3))
        path = folder / f"{number:03d}.png"
        Image.fromarray((colour + noise).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths


def write_index(path, files, splits, labels, classnames):
    """An IMAGES table of picture files; a label may be None."""
    tables.write(
        path,
        {
            "image_id": [Path(file).name for file in files],
            "path": files,
            "split": splits,
            "label": labels,
            "classname": [None if label is None else classnames[label] for label in labels],
            "width": [70] * len(files),
            "height": [64] * len(files),
        },
        tables.IMAGES,
        {"classnames": classnames},
    )
    return str(path)


def write_pseudo_labels(path, image_ids, labels):
    """A PSEUDO_LABELS table that holds nothing but labels."""
    n = len(image_ids)
    tables.write(
        path,
        {
            "image_id": image_ids,
            "split": ["train"] * n,
            "pseudo_label": pa.array(labels, pa.int32()),
            "confidence": pa.nulls(n, pa.float32()),
            "topk_labels": [[label] for label in labels],
            "topk_scores": [[0.5]] * n,
            "image_features": [[1.0]] * n,
        },
        tables.PSEUDO_LABELS,
    )
    return str(path)


def write_captions(path, ids, captions, pseudo_labels=None):
    """A CAPTIONS table."""
    n = len(ids)
    tables.write(
        path,
        {
            "id": ids,
            "members": [[name] for name in ids],
            "pseudo_label": pa.array(pseudo_labels or [None] * n, pa.int32()),
            "prompt": ["?"] * n,
            "caption": captions,
            "finish_reason": ["stop"] * n,
            "n_tokens": pa.array([3] * n, pa.int32()),
            "attempts": pa.array([1] * n, pa.int8()),
            "error": pa.nulls(n, pa.string()),
            "digest": pa.nulls(n, pa.string()),
        },
        tables.CAPTIONS,
    )
    return str(path)
