"""Checks of models for try_gpu.py: weights of the hub, and real shapes with random weights."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from safetensors.torch import load_file

from latteclip.clip import encode, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import parts
from latteclip.data import loader

SHAPES = {  # of real models: the name, and images in a batch
    "open_clip ViT-B-32": 256,
    "open_clip ViT-B-16-SigLIP2-256": 256,
    "timm vit_base_patch14_reg4_dinov2": 256,
}
PHOTOGRAPHS = 512
# Models of config/modern.yaml, and SigLIP 2 as transformers has it.
SIGLIP = ("ViT-B-16-SigLIP2-256", "webli")
SIGLIP_REPOS = ("timm/ViT-B-16-SigLIP2-256", "google/siglip2-base-patch16-256")
DINO = "vit_base_patch14_reg4_dinov2.lvd142m"
WEIGHTS, CLIP_WEIGHTS = "model.safetensors", "open_clip_model.safetensors"
TEXTS = (
    "a photo of a cat",
    "dog",
    "a close up photo of a word " + "and a word " * 40,
)
TEXT_LENGTH = 64  # tokens that SigLIP 2 reads of a text
COSINE = 0.9999  # least, of features of the same text or image by two libraries
Finding = tuple[bool, str]  # whether it is as it should be, and what was found


class NotTriedError(Exception):
    """A check that this machine does not allow."""


def weights_of(repo: str, name: str) -> Path:
    """Return a file of the hub's cache. NotTriedError: it is not there."""
    path = try_to_load_from_cache(repo, name)
    if not isinstance(path, str):
        raise NotTriedError(f"{repo} is not in the hub's cache")
    return Path(path)


def siglip_texts() -> Finding:
    """Compare tokens and features of texts with those of transformers."""
    weights_of(SIGLIP_REPOS[0], CLIP_WEIGHTS)
    weights_of(SIGLIP_REPOS[1], WEIGHTS)
    return same_texts(*SIGLIP, SIGLIP_REPOS[1])


@torch.inference_mode()
def same_texts(
    model: str, pretrained: str | None, of_transformers: str
) -> Finding:
    """Compare a SigLIP of open_clip with the same of transformers."""
    clip = clips.load(model, pretrained, torch.device("cpu"), "float32")
    tokens = clip.tokenizer(list(TEXTS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(of_transformers)
    length = {
        "max_length": TEXT_LENGTH,
        "padding": "max_length",
        "truncation": True,
    }
    ids = tokenizer(list(TEXTS), return_tensors="pt", **length)["input_ids"]
    siglip: Any = transformers.SiglipModel.from_pretrained(of_transformers).eval()
    theirs = F.normalize(
        siglip.get_text_features(input_ids=ids).pooler_output, dim=-1
    )
    cosine = float((encode.encode_texts(clip, tokens) * theirs).sum(-1).min())
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    first = [each for each in tokens[0].tolist() if each != padding]
    ends_well = first[-1] == end and tokens[0, len(first) :].eq(padding).all()
    equal = torch.equal(tokens, ids)
    text = f"tokens {'equal' if equal else 'differ'}, {first} of the first text"
    is_good = equal and bool(ends_well) and cosine >= COSINE
    return (
        is_good,
        f"{text}, end token {end}, padding {padding}, cosine {cosine:.6f} at least",
    )


def siglip_weights() -> Finding:
    """Load a CLIP whose image tower is timm's, and compare each of its weights with the file's."""
    file = weights_of(SIGLIP_REPOS[0], CLIP_WEIGHTS)
    clip = clips.load(*SIGLIP, torch.device("cpu"), "float32")
    return same_weights(clip.model, file)


def dino_weights() -> Finding:
    """Load an image encoder of timm, and compare each of its weights with the file's."""
    file = weights_of(image_encoders.repo(DINO), WEIGHTS)
    encoder: Any = image_encoders.load(DINO, torch.device("cpu"), "float32")
    return same_weights(encoder.model.network, file)


def same_weights(model: torch.nn.Module, path: Path) -> Finding:
    """Compare the weights of a model with those of its file, by their names."""
    loaded, file = model.state_dict(), load_file(path)
    names = loaded.keys() & file.keys()
    wrong = [
        name for name in names if not torch.equal(loaded[name], file[name].float())
    ]
    wrong += sorted(loaded.keys() ^ file.keys())
    return not wrong, f"{len(names)} weights loaded, not of the file: {wrong[:3]}"


def real_shape(name: str, batch_size: int, folder: Path) -> Finding:
    """Encode photographs by a model of a real shape with random weights."""
    if not torch.cuda.is_available():
        raise NotTriedError("no GPU")
    library, model_name = name.split()
    if library == "open_clip":
        model, _, transform = open_clip.create_model_and_transforms(
            model_name, pretrained=None
        )
        encode = model.encode_image
    else:
        model = timm.create_model(model_name, pretrained=False, num_classes=0)
        transform = timm.data.create_transform(
            **timm.data.resolve_model_data_config(model)
        )
        encode = model
    model.eval().cuda()
    files = loader.ImageFiles([*photographs(folder)], transform)
    indices = range(len(files))
    order = [indices[rows] for rows in parts(len(files), batch_size)]
    threads = os.cpu_count() or 1
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _, images in loader.batches(
            files, order, torch.device("cuda"), threads
        ):
            encode(images)
    torch.cuda.synchronize()
    rate = len(files) / (time.monotonic() - started)
    of_gpu = torch.cuda.max_memory_allocated() / 2**30
    usage = (
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    host = max(each.ru_maxrss for each in usage) / 2**20
    return (
        True,
        f"{rate:.0f} images/s, {of_gpu:.1f} GiB of the GPU, {host:.1f} GiB of a process",
    )


def photographs(folder: Path) -> Iterator[str]:
    """Yield paths of JPEGs of 12 megapixels, which are written once."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = folder / f"{number}.jpg"
        if not path.exists():
            grid = Image.fromarray(
                rng.integers(0, 256, (188, 250, 3), dtype=np.uint8)
            )
            grid.resize((4000, 3000), Image.Resampling.BICUBIC).save(
                path, quality=90
            )
    yield from (str(folder / f"{number % 8}.jpg") for number in range(PHOTOGRAPHS))
