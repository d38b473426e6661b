"""Time `latteclip predict` beside its image encoder alone.

    python benchmarks/predict.py [--size 500 375] [--pairs 5] [--images 500] [--threads 2]

The two alternate, so that a busy machine slows both. The encoder alone gets as many images in the
same batches by the same threads, of one picture that is a tensor already. The model is an open_clip
model with random weights. Photographs are JPEGs of smooth noise with a grain, which have as many
bytes as a camera's. The rate that both could reach if no core ever waited is computed from the CPU
time of decoding.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Torch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, parts
from latteclip.clip.encode import encode_images
from latteclip.core import devices
from latteclip.core.class_templates import ClassTemplates
from latteclip.data import loader
from latteclip.deploy.predictor import Predictor

CLASSES = 47
DISTINCT = 8  # photographs
GRAIN = 6  # of photographs: standard deviation of a pixel, of 255
CPU = torch.device("cpu")


def make_model(folder: Path, name: str) -> None:
    """Write an open_clip model with random weights and a random classifier."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name, device=CPU)
    config = open_clip.get_model_config(name)
    clip = clips.Clip(
        model, partial(open_clip.get_tokenizer, name), preprocess, config, CPU
    )
    classnames = [f"class {number}" for number in range(CLASSES)]
    weights = F.normalize(torch.randn(CLASSES, config["embed_dim"]), dim=1)
    templates = ClassTemplates(["a photo of a {}."])
    clips.save_finetuned(
        clip, Classifier.of(weights), classnames, templates, folder
    )


def make_photographs(folder: Path, size: tuple[int, int]) -> list[str]:
    """Write DISTINCT JPEGs of a size (width, height) and return their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [str(folder / f"{number}.jpg") for number in range(DISTINCT)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), float)
        grained = (smooth + rng.normal(0, GRAIN, smooth.shape)).clip(0, 255)
        Image.fromarray(grained.astype(np.uint8)).save(path, quality=90)
    return paths


def picture(clip: clips.Clip, path: str) -> torch.Tensor:
    """Return a picture [3, H, W] as the encoder takes it."""
    pixels: torch.Tensor = clip.preprocess(loader.open_rgb(path))
    return pixels


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock, and of this process's CPU."""
    clock = time.perf_counter()
    used = time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - used


def summary(what: str, images: int, times: list[tuple[float, float]]) -> str:
    """Return rates of both, and the median and range of their ratio over pairs."""
    alone, whole = (
        images / statistics.median(column) for column in zip(*times, strict=True)
    )
    ratios = sorted(encoder / predict for encoder, predict in times)
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    return (
        f"{what}: encoder alone {alone:.1f} images/s, predict {whole:.1f} images/s; "
        f"ratio of pairs {statistics.median(ratios):.3f} ({spread})"
    )


def compare(model: Path, paths: list[str], args: argparse.Namespace) -> None:
    """Print rates of `predict` and of its encoder alone."""
    encode.BATCH = args.batch
    predictor = Predictor(model, device="cpu", threads=args.threads)
    clip = predictor.model.clip
    named = [paths[number % len(paths)] for number in range(args.images)]
    sizes = [rows.stop - rows.start for rows in parts(args.images, args.batch)]
    torch.set_num_threads(1)  # as in each thread that decodes
    decoding = statistics.median(
        seconds(partial(picture, clip, path))[1] for path in 5 * paths
    )
    torch.set_num_threads(args.threads)
    batch = picture(clip, paths[0]).expand(args.batch, -1, -1, -1).contiguous()

    def alone() -> None:
        with torch.no_grad():
            for size in sizes:
                encode_images(clip, batch[:size])

    encode_images(clip, batch)  # warm-up
    times = [
        (seconds(alone), seconds(lambda: predictor(named)))
        for _ in range(args.pairs)
    ]
    print(
        f"{args.encoder}, {args.images} of {args.size[0]} x {args.size[1]}, {args.threads} threads"
    )
    for number, what in enumerate(("clock", "CPU time")):
        pairs = [(encoder[number], whole[number]) for encoder, whole in times]
        print(summary(what, args.images, pairs))
    encoding = statistics.median(encoder[1] for encoder, _ in times) / args.images
    print(
        f"CPU time an image: {1000 * encoding:.1f} ms encoded, {1000 * decoding:.1f} ms decoded, "
        f"at most {encoding / (encoding + decoding):.2f} of the encoder's rate"
    )


def main() -> None:
    """Make a model and photographs, and print both rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="ViT-B-32")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(500, 375),
        metavar=("WIDTH", "HEIGHT"),
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    devices.pick("cpu", args.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", args.encoder)
        photographs = make_photographs(
            Path(folder) / "photographs", tuple(args.size)
        )
        compare(Path(folder) / "model", photographs, args)


if __name__ == "__main__":
    main()
