"""Time a LatteCLIP training step as the paper's authors encode texts, and as this package does.

Both steps do the same mathematics (the losses are compared) on the same ViT-B-32 with random
weights. The authors' way encodes four batches of texts, each at the full context: a class template
for each image and pseudo-label, its image description and a group description. The package encodes
each distinct text once, without its padding. The two alternate, so that a busy machine slows both.

The share of a step that waits for images is printed as well.

    python benchmarks/train_step.py [--pairs 5] [--threads 2]
    python benchmarks/train_step.py --memory

With --memory no step is timed. It prints the table of docs/scaling.md: what a step of 512 images
and their texts needs on a GPU, by tensors without contents. torch's FLOP counter counts the
arithmetic, and autograd names the tensors that the backward pass reads.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import open_clip
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.config.keys import SwitchesSection
from latteclip.core import devices
from latteclip.core.errors import GIB
from latteclip.data.loader import batches as image_batches
from latteclip.train.data import TrainingImages
from latteclip.train.objectives import base, latteclip
from latteclip.train.objectives.base import (
    TokenizedTexts,
    TrainingBatch,
    TrainingTexts,
)
from latteclip.train.objectives.latteclip import LatteClip
from latteclip.train.training import parameter_groups

CLASSES = 47  # as DTD has
IMAGES = 480
ALPHA = 0.01
LR = 1e-7  # of DTD
BATCH = 512  # of a step by --memory
TOKENS = 28  # twenty words
ATTENTION = {  # on a CPU, which torch does not count
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
VOCABULARY = (
    "a the of with and in on rough smooth shiny dark bright pattern surface lines dots squares "
    "threads cracks holes folds waves grains cells woven striped blue red green brown white black "
    "small large thin thick regular irregular repeated natural fabric stone paper metal skin"
)
WORDS = VOCABULARY.split()


def captions(n: int, rng: random.Random) -> list[str]:
    """Return texts of 12 to 24 words."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(12, 24))) for _ in range(n)]


def make_clip(device: torch.device) -> clips.Clip:
    """Return a ViT-B-32 with random weights."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32", device=device
    )
    config = open_clip.get_model_config("ViT-B-32")
    tokenizer = partial(open_clip.get_tokenizer, "ViT-B-32")
    return clips.Clip(model.train(), tokenizer, preprocess, config, device)


class Setting:
    """One batch of images and texts, and the two ways to compute its loss."""

    def __init__(self, clip: clips.Clip, batch: int) -> None:
        rng = random.Random(0)
        self.clip = clip
        self.images = torch.randn(batch, 3, 224, 224, device=clip.device)
        self.index = torch.arange(batch)
        self.labels = torch.tensor([rng.randrange(CLASSES) for _ in range(IMAGES)])
        classes = [
            f"{' '.join(rng.choices(WORDS, k=2))} texture." for _ in range(CLASSES)
        ]
        texts = [classes, captions(IMAGES, rng), captions(IMAGES, rng)]
        self.tokens = [clip.tokenizer(kind).to(clip.device) for kind in texts]
        bank = TokenizedTexts(clip)
        classes_ids, image_ids, group_ids = (bank.add(kind) for kind in texts)
        training_texts = TrainingTexts(
            bank, classes_ids, image_ids, group_ids, self.labels
        )
        with torch.no_grad():
            self.objective = LatteClip(
                training_texts, SwitchesSection(alpha=ALPHA), seed=0
            )

    def package(self) -> torch.Tensor:
        """Return the loss as the package computes it."""
        features = encode.encode_images(self.clip, self.images)
        batch = TrainingBatch(
            self.index, self.labels[self.index], features, self.scale()
        )
        loss: torch.Tensor = self.objective.loss(batch)[0]
        return loss

    def authors(self) -> torch.Tensor:
        """Return the same loss from four batches of texts, each at the full context."""
        features = encode.encode_images(self.clip, self.images)
        fixed = self.objective.prototypes
        zero_shot = self.labels[self.index]
        finetuned = (features.detach() @ fixed.T).argmax(dim=1).cpu()
        groups = self.objective.groups.draw(zero_shot)
        class_tokens, image_tokens, group_tokens = self.tokens
        of_zero_shot, of_finetuned, of_image, of_group = (
            self.encode(tokens)
            for tokens in (
                class_tokens[zero_shot],
                class_tokens[finetuned],
                image_tokens[self.index],
                group_tokens[groups],
            )
        )
        total = features.new_zeros(())
        for labels, own in ((zero_shot, of_zero_shot), (finetuned, of_finetuned)):
            kinds = torch.stack([own, of_image, of_group])
            weights = latteclip.margins(kinds, fixed)
            mixed = (weights * kinds).sum(dim=0) / weights.sum(dim=0)
            target = torch.lerp(fixed[labels.to(features.device)], mixed, ALPHA)
            total = total + base.contrastive(features, target, self.scale())
        return total

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode texts [B, 77] by open_clip's own encode_text."""
        with self.clip.autocast():
            features = self.clip.model.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(features.float(), dim=-1)

    def scale(self) -> torch.Tensor:
        """Return exp(logit_scale)."""
        scale: torch.Tensor = self.clip.model.logit_scale.exp()  # type: ignore[operator]
        return scale

    def same_groups(self) -> None:
        """Draw the same group descriptions again."""
        self.objective.groups.generator.manual_seed(0)


def timed(
    loss: Callable[[], torch.Tensor],
    setting: Setting,
    optimiser: torch.optim.Optimizer,
) -> tuple[float, float]:
    """Return the seconds of a step, and its loss. The weights hardly move at this learning rate."""
    setting.same_groups()
    _wait(setting.clip.device)
    started = time.perf_counter()
    value = loss()
    optimiser.zero_grad()
    value.backward()
    optimiser.step()
    _wait(setting.clip.device)
    return time.perf_counter() - started, value.item()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def data_wait(
    setting: Setting, optimiser: torch.optim.Optimizer, threads: int
) -> tuple[float, float]:
    """Return the shares of a step that wait for images: decoded from JPEG, and cached."""
    batch, side = len(setting.images), (500, 450)  # about the size of DTD's
    noise = np.random.default_rng(0).integers(
        0, 256, (batch, 60, 60, 3), dtype=np.uint8
    )
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.jpg" for number in range(batch)]
        for path, pixels in zip(paths, noise, strict=True):
            Image.fromarray(pixels).resize(side).save(path, quality=90)
        clip = setting.clip
        checksums = pa.chunked_array([[path.encode() for path in paths]])
        files = TrainingImages(
            paths, checksums, clip.input_size, 0, f"{folder}/cache"
        )
        epochs = 2 if setting.clip.device.type == "cpu" else 6
        keys = [
            [(epoch, index) for index in range(batch)] for epoch in range(epochs)
        ]
        batches = image_batches(files, keys, clip.device, threads)
        for _ in keys:
            began = time.perf_counter()
            setting.images = clip.normalise(next(batches)[1])
            waited = time.perf_counter() - began
            step, _ = timed(setting.package, setting, optimiser)
            shares.append(waited / (waited + step))
    return shares[0], statistics.median(shares[1:])


class InBf16(clips.Clip):
    """A CLIP that computes on the CPU as on a GPU."""

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


def needs(name: str) -> str:
    """Return a row of Markdown: the memory and the arithmetic of a step of a CLIP of open_clip."""
    with FakeTensorMode():
        network = open_clip.CLIP(**open_clip.get_model_config(name))
        clip = InBf16(network, lambda: None, None, {}, torch.device("cpu"))  # type: ignore[arg-type]
        images = torch.empty(BATCH, 3, *clip.input_size)
        texts = torch.empty(2 * BATCH + CLASSES, TOKENS, dtype=torch.long)
        tower = encode.CausalText.of(network)
        assert tower is not None
        saved: dict[int, torch.UntypedStorage] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage
            return tensor

        with (
            FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter,
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            clip.autocast(),
        ):
            of_images = encode.encode_images(clip, images)
            (of_images.sum() + tower.encode(texts).sum()).backward()
        for weight in (*network.parameters(), *network.buffers()):
            saved.pop(weight.untyped_storage()._cdata, None)
    # float32: the weights, their gradients, and both moments of AdamW; the images
    weights = 4 * 4 * sum(weight.numel() for weight in network.parameters())
    activations = sum(storage.nbytes() for storage in saved.values())
    activations += 4 * images.numel()
    sizes = [weights, activations, weights + activations]
    cells = [f"{size / GIB:.1f} GiB" for size in sizes]
    flops = counter.get_total_flops() / 1e12
    return f"| {name} | {' | '.join(cells)} | {flops:.0f} TFLOP |"


def in_float32(layer_norm: Callable[..., torch.Tensor]) -> None:
    """Let layer norms compute in float32, as autocast does on a GPU."""
    F.layer_norm = lambda values, *rest: layer_norm(values.float(), *rest)


def main() -> None:
    """Print the two medians, their ratio and the spread of the ratio over pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.memory:
        in_float32(F.layer_norm)
        print("\n".join(map(needs, ("ViT-B-32", "ViT-L-14"))))
        return
    device = devices.pick("auto", args.threads)
    batch = 512 if device.type == "cuda" else 48
    clip = make_clip(device)
    setting = Setting(clip, batch)
    adamw = torch.optim.AdamW(parameter_groups(clip.model), lr=LR, fused=True)
    # Warm-up: first allocations, optimiser state.
    timed(setting.package, setting, adamw)
    times: list[tuple[float, float]] = []
    for pair in range(args.pairs):
        authors, expected = timed(setting.authors, setting, adamw)
        package, found = timed(setting.package, setting, adamw)
        # The weights move by a step of 1e-7 in between; bfloat16 rounds on a GPU.
        if abs(found - expected) > (1e-3 if device.type == "cpu" else 2e-2) * abs(
            expected
        ):
            raise SystemExit(f"The losses differ: {expected} and {found}.")
        times.append((authors, package))
        print(
            f"pair {pair + 1}: {authors:.2f} s, {package:.2f} s; losses {expected:.5f} {found:.5f}"
        )
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    ratios = sorted(authors / package for authors, package in times)
    print(
        f"{device.type}, batch {batch}, {CLASSES} classes: medians {medians[0]:.2f} s and "
        f"{medians[1]:.2f} s, ratio {medians[0] / medians[1]:.2f} "
        f"(pairs {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    decoding, cached = data_wait(setting, adamw, args.threads)
    print(
        f"share of a step spent waiting for images: {decoding:.1%} decoding JPEGs, "
        f"{cached:.1%} from the cache"
    )


if __name__ == "__main__":
    main()
