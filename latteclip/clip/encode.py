"""Encode N images (B in a batch), T texts of L tokens and C classes to features of width D."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import open_clip
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from latteclip.clip.classifier import FeatureMemmap, classify, parts
from latteclip.clip.model import Clip, FinetunedModel
from latteclip.core.class_templates import ClassTemplates, class_texts
from latteclip.core.errors import GIB, UserError
from latteclip.core.terminal import Progress, log_work
from latteclip.data import loader

log = logging.getLogger(__name__)
BATCH = 256  # images that are loaded at once, and encoded at once by a GPU
CPU_BATCH = 8  # images that a CPU encodes at once: more are no faster
LENGTH_BUCKETS = 3
ACTIVATIONS = 4 * GIB  # bytes of a micro-batch without a GPU of its own memory
Encoder = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CausalText:
    """open_clip's causal text transformer, pooled at the end-of-text token, for short texts."""

    tower: Any
    pool_type: str
    eos_id: int

    @classmethod
    def of(cls, model: torch.nn.Module) -> Self | None:
        """Return a model's text tower, or None if features may depend on what follows the text."""
        tower = text_tower(model)
        if isinstance(tower, open_clip.CLIP):
            causal = cls(tower, tower.text_pool_type, tower.text_eos_id)
        elif (
            isinstance(tower, open_clip.transformer.TextTransformer)
            and tower.cls_emb is None
        ):
            causal = cls(tower, tower.pool_type, tower.eos_id)
        else:
            return None
        is_exact = tower.attn_mask is not None and causal.pool_type in (
            "argmax",
            "eos",
        )
        return causal if is_exact else None

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return how many tokens [T] the feature of each text depends on."""
        if self.pool_type == "argmax":
            return tokens.argmax(dim=-1) + 1
        return (tokens == self.eos_id).int().argmax(dim=-1) + 1

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features [T, D] of tokens [T, L] with L up to the context length."""
        tower = self.tower
        length = tokens.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        positions = tower.positional_embedding[:length].to(dtype)
        x = tower.token_embedding(tokens).to(dtype) + positions
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        pool = open_clip.transformer.text_global_pool
        projection = tower.text_projection
        pooled: torch.Tensor = pool(
            tower.ln_final(x), tokens, self.pool_type, self.eos_id
        )
        if isinstance(projection, torch.nn.Linear):
            return projection(pooled)  # type: ignore[no-any-return]
        return pooled if projection is None else pooled @ projection


def text_tower(model: torch.nn.Module) -> Any:
    """Return the module with the text tower's parts, which may be the whole open_clip.CLIP."""
    return getattr(model, "text", model)


def encode_images(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    """Encode images [B, 3, H, W] to L2-normalised float32 features [B, D]."""
    model: Any = clip.model
    with clip.autocast():
        features = _encode(clip, model.encode_image, images)
    return F.normalize(features.float(), dim=-1)


def encode_texts(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    """Encode tokens [T, L] to L2-normalised float32 features [T, D], without padding if causal."""
    model: Any = clip.model
    causal = CausalText.of(model)
    with clip.autocast():
        if causal:
            features = _encode_by_length(clip, causal, tokens)
        else:
            features = _encode(clip, model.encode_text, clip.send(tokens))
    return F.normalize(features.float(), dim=-1)


def _encode_by_length(
    clip: Clip, tower: CausalText, tokens: torch.Tensor
) -> torch.Tensor:
    lengths = tower.lengths(tokens)  # [T]
    order = lengths.argsort(stable=True)
    features = []
    for part in order.chunk(LENGTH_BUCKETS):
        part_tokens = clip.send(tokens[part, : int(lengths[part].max())])
        features.append(_encode(clip, tower.encode, part_tokens))
    return torch.cat(features)[clip.send(order.argsort())]


def _encode(clip: Clip, encode: Encoder, rows: torch.Tensor) -> torch.Tensor:
    """Return `encode(rows)`. The backward pass encodes each micro-batch again (GradCache)."""
    if not torch.is_grad_enabled():
        return _halving_on_oom(clip, encode, rows)
    if clip.micro_batch is None or len(rows) <= clip.micro_batch:
        return encode(rows)
    parts = rows.split(clip.micro_batch)
    return torch.cat(
        [checkpoint(encode, part, use_reentrant=False) for part in parts]
    )


def fitting_micro_batch(clip: Clip) -> int:
    """Return the images, a power of two, whose activations take at most ACTIVATIONS bytes.

    They are those that the backward pass of the image tower needs.
    """
    model: Any = clip.model
    image = torch.zeros(1, 3, *clip.input_size, device=clip.device)
    size = activations(clip, model.encode_image, image)
    fitting = max(1, ACTIVATIONS // max(1, size))
    return 1 << (fitting.bit_length() - 1)


def activations(clip: Clip, encode: Encoder, rows: torch.Tensor) -> int:
    """Return the bytes, without weights, that the backward pass of `encode(rows)` reads."""
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encode(rows)
    for weight in (*clip.model.parameters(), *clip.model.buffers()):
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def _halving_on_oom(
    clip: Clip, encode: Encoder, rows: torch.Tensor
) -> torch.Tensor:
    """Return `encode(rows)` without gradients, in halves each time memory runs out."""
    while True:
        try:
            parts = rows.split(clip.at_once or len(rows))
            return torch.cat([encode(part) for part in parts])
        # Which holds memory until the handler is left.
        except torch.OutOfMemoryError:
            tried = min(len(rows), clip.at_once or len(rows))
        if tried == 1:
            raise UserError(
                "Not even one image or text can be encoded in the GPU's free memory; end what else "
                "uses the GPU, take a smaller clip.model, or compute on the CPU."
            )
        clip.at_once = tried // 2
        log.warning(
            "%d images or texts do not fit into the GPU's memory: encoding fewer at once.",
            tried,
        )


def encode_files(clip: Clip, paths: Sequence[str], threads: int) -> FeatureMemmap:
    """Return features [N, D] of image files under the evaluation transform."""
    files = loader.ImageFiles(paths, clip.pixels)
    features = FeatureMemmap(len(paths), clip.width)
    started = time.monotonic()
    for indices, (batch,) in encoded([clip], files, threads):
        features[torch.tensor(indices)] = batch
    log_work(log, f"Encoded {len(paths)} images", time.monotonic() - started)
    return features


def classify_files(
    model: FinetunedModel, paths: Sequence[str], k: int, threads: int
) -> torch.Tensor:
    """Return the k best classes [N, K] of N image files, best first."""
    features = encode_files(model.clip, paths, threads)
    return classify(features, model.classifier, k)[0]


@torch.no_grad()
def encoded(
    models: Sequence[Clip], files: loader.ImageFiles, threads: int
) -> Iterator[tuple[list[Any], list[torch.Tensor]]]:
    """Yield the keys of B files and their features [B, D] on the CPU by models on one device.

    The files have the `pixels` of the models.
    """
    progress = Progress(len(files), "images")
    indices = range(len(files))
    order = (indices[rows] for rows in parts(len(files), BATCH))
    batches = loader.batches(files, order, models[0].device, threads)
    for keys, batch in batches:
        yield keys, [_encode_padded(clip, batch) for clip in models]
        progress.add(len(batch))


def _encode_padded(clip: Clip, batch: torch.Tensor) -> torch.Tensor:
    """Return features [B, D] of images to the same bit, whichever images are encoded with them.

    The kernels of a matrix product follow from its size, so that each is padded to one size.
    """
    size = CPU_BATCH if clip.device.type == "cpu" else BATCH
    images = clip.normalise(batch)
    padded = F.pad(images, (*[0] * 7, -len(batch) % size))
    features = [encode_images(clip, part) for part in padded.split(size)]
    return torch.cat(features)[: len(batch)].cpu()


@torch.no_grad()
def class_embeddings(
    clip: Clip, class_templates: ClassTemplates, classnames: Sequence[str]
) -> torch.Tensor:
    """Return W0 [C, D], L2-normalised, on the CPU: row c = f_txt(T(c)) (LatteCLIP, section 3.1).

    The features of several templates or names of a class are averaged, as in CLIP's evaluation.
    Raises UserError for synonyms of other classes.
    """
    names, rows = zip(*class_templates.names(classnames), strict=True)
    features = []
    for each in class_templates.templates:
        tokens = clip.tokenizer(class_texts(each, names))
        features.append(encode_texts(clip, tokens).cpu())
    if len(features) == 1 and len(names) == len(classnames):
        return features[0]
    sums = torch.zeros(len(classnames), features[0].shape[1])
    sums.index_add_(0, torch.tensor(rows), torch.stack(features).sum(dim=0))
    return F.normalize(sums, dim=-1)
