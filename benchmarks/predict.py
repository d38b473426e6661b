"""Time `latteclip predict` beside the evaluation stage, on the same images and the same model.

The two alternate, so that a busy machine slows both. Each time is that of the whole function, from
reading the model to writing the results. The predictions are compared. Last, the share of CPU time
that checking the model takes of one more run.

    python benchmarks/predict.py [--pairs 5] [--images 96] [--threads 2]
    python benchmarks/predict.py --encoder ViT-B-32 [--size 500 375] [--pairs 5] [--images 500]

With --encoder a classifier that has its model alternates with the encoder alone: the same number of
images in the same batches by the same threads, but of one picture that is a tensor already. The
model is ViT-B-32 with random weights, or the demo's CLIP. Photographs are JPEGs of noise that is
smooth but for a grain, with as many bytes as a camera's. What both could reach if no core ever
waited is computed from the CPU time that decoding takes by itself. Threads wait asleep, as the
command `latteclip` has them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # which torch reads when it is loaded

import numpy as np
import open_clip
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image

from latteclip.clip import clip_config
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import encode_images
from latteclip.config import layers
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.metadata import IndexMetadata
from latteclip.data import loader
from latteclip.deploy.predict import Predictor, predict
from latteclip.evaluate.evaluate import EvaluateSettings, evaluate
from latteclip.evaluate.train_predictions import N_EXAMPLES
from latteclip.train.history import TrainingMetadata
from latteclip.train.settings import Recipe

HISTORY = pa.schema([("step", pa.int32())])  # evaluate reads only its metadata
CLASSES = 47
SIZE = (500, 375)  # pixels
BATCH = 32
TOPK = 5
DISTINCT = 8  # photographs
GRAIN = 6  # of photographs: standard deviation of a pixel, of 255
DEMO = layers.PACKAGE / "demo" / "models" / "clip"
CHECKS = (
    (clips, "check_foreign"),
    (clips, "check_finite"),
    (clip_config, "read"),
)


def make_model(root: Path, device: torch.device, name: str = "ViT-B-32") -> list[str]:
    """Write the demo's CLIP or an open_clip model of random weights. Return its class names."""
    torch.manual_seed(0)
    if name == "demo":
        clip = clips.load(f"local-dir:{DEMO}", None, device)
    else:
        model, _, preprocess = open_clip.create_model_and_transforms(name, device=device)
        config = open_clip.get_model_config(name)
        tokenizer = partial(open_clip.get_tokenizer, name)
        clip = clips.Clip(model, tokenizer, preprocess, config, device)
    classnames = [f"class {number}" for number in range(CLASSES)]
    width = clip.config["embed_dim"]
    classifier = Classifier.of(F.normalize(torch.randn(CLASSES, width), dim=1))
    clips.save(clip, classifier, classnames, "a photo of a {}.", root / "model")
    metadata = TrainingMetadata(
        model=name,
        pretrained=None,
        objective="flyp",
        labels="zero_shot",
        recipe=Recipe(epochs=1, warmup_steps=0, batch_size=1, lr=1e-5),
        found=[],
        seed=0,
        flags=[],
        drawn=[],
        identity="",
    )
    tables.write(root / "history.parquet", {"step": [1]}, HISTORY, metadata)
    return classnames


def make_images(root: Path, n: int, classnames: list[str]) -> list[str]:
    """Write JPEGs of smooth noise, which compress like photographs, with index and pseudo-labels.

    The first few are those of the page: training images, which `evaluate` classifies as well.
    """
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    paths = [str(root / "images" / f"{number:05d}.jpg") for number in range(n)]
    for path in paths:
        coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(
            path, quality=90
        )
    splits = ["train"] * N_EXAMPLES + ["test"] * (n - N_EXAMPLES)
    columns = {
        "image_id": paths,
        "path": paths,
        "split": splits,
        "label": [0] * n,
        "classname": [classnames[0]] * n,
        "checksum": [number.to_bytes(16) for number in range(n)],
        "width": [SIZE[0]] * n,
        "height": [SIZE[1]] * n,
    }
    tables.write(root / "images.parquet", columns, tables.IMAGES, IndexMetadata(classnames))
    columns = {
        "image_id": paths,
        "split": splits,
        "pseudo_label": [0] * n,
        "confidence": [0.5] * n,
        "topk_labels": [[0]] * n,
        "topk_scores": [[0.5]] * n,
        "image_features": [[1.0]] * n,
    }
    tables.write(root / "pseudo_labels.parquet", columns, tables.PSEUDO_LABELS)
    return paths


def make_photographs(root: Path, size: tuple[int, int]) -> list[str]:
    """Write DISTINCT JPEGs in the size (width, height), pixels."""
    rng = np.random.default_rng(0)
    (root / "photographs").mkdir()
    paths = [str(root / "photographs" / f"{number}.jpg") for number in range(DISTINCT)]
    for path in paths:
        coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), float
        )
        grained = (smooth + rng.normal(0, GRAIN, smooth.shape)).clip(0, 255)
        Image.fromarray(grained.astype(np.uint8)).save(path, quality=90)
    return paths


def beside_encoder(model: Path, paths: list[str], args: argparse.Namespace) -> None:
    """Print rates of the classifier and of its encoder alone, and their ratio over pairs."""
    opened = Predictor(model, device="cpu", threads=args.threads, batch_size=args.batch)
    clip = opened.model.clip
    named = [paths[number % len(paths)] for number in range(args.images)]
    torch.set_num_threads(1)  # as of each thread that decodes
    decoding = statistics.median(
        seconds(partial(ready, clip, path))[1] for path in 5 * paths
    )
    torch.set_num_threads(args.threads)
    batch = ready(clip, paths[0]).expand(args.batch, -1, -1, -1).contiguous()
    sizes = [len(indices) for indices in loader.in_order(args.images, args.batch)]

    def alone() -> None:
        with torch.no_grad():
            for size in sizes:
                encode_images(clip, batch[:size])

    def classify() -> None:
        assert len(opened(named)) == args.images

    encode_images(clip, batch)  # warm-up
    times = [(seconds(alone), seconds(classify)) for _ in range(args.pairs)]
    width, height = args.size
    print(f"{args.encoder}, {args.images} of {width} x {height}, {args.threads} threads")
    for what, place in (("clock", 0), ("CPU time", 1)):
        columns = [(encoder[place], whole[place]) for encoder, whole in times]
        print(summary(what, args.images, columns, ("encoder alone", "predict")))
    encoding = statistics.median(encoder[1] for encoder, _ in times) / args.images
    print(
        f"CPU time of an image: {1000 * encoding:.1f} ms encoded, {1000 * decoding:.1f} ms decoded "
        f"by itself; so at most {encoding / (encoding + decoding):.2f} of the encoder's rate"
    )


def ready(clip: clips.Clip, path: str) -> torch.Tensor:
    """Return a picture as the encoder takes it."""
    picture: torch.Tensor = clip.preprocess(loader.open_rgb(path))
    return picture


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock, and of this process's CPU, which others do not slow."""
    clock = time.perf_counter()
    used = time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - used


def share_of_checks(work: Callable[[], object]) -> float:
    """Return the share of its CPU time that CHECKS take."""
    spent = []

    def timed(check: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            began = time.process_time()
            try:
                return check(*arguments)
            finally:
                spent.append(time.process_time() - began)

        return run

    for module, name in CHECKS:
        setattr(module, name, timed(getattr(module, name)))
    _, used = seconds(work)
    return sum(spent) / used


def summary(
    what: str,
    images: int,
    times: list[tuple[float, float]],
    names: tuple[str, str] = ("evaluate", "predict"),
) -> str:
    """Return rates of both, and the median and spread of their ratio over pairs."""
    rates = [images / statistics.median(column) for column in zip(*times, strict=True)]
    ratios = sorted(of_stage / of_command for of_stage, of_command in times)
    return (
        f"{what}: {names[0]} {rates[0]:.1f} images/s, {names[1]} {rates[1]:.1f} images/s; "
        f"ratio of pairs {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def main() -> None:
    """Print both rates, and the median and spread of their ratio over pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder", choices=["ViT-B-32", "demo"])
    parser.add_argument(
        "--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    if args.encoder:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make_model(root, devices.pick("cpu", args.threads), args.encoder)
            beside_encoder(root / "model", make_photographs(root, tuple(args.size)), args)
        return
    device = devices.pick("auto", args.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        classnames = make_model(root, device)
        paths = make_images(root, args.images, classnames)

        def stage() -> None:
            evaluate(
                str(root / "images.parquet"),
                str(root / "pseudo_labels.parquet"),
                str(root / "model"),
                str(root / "history.parquet"),
                EvaluateSettings(
                    clip=ClipSection(),
                    inference=InferenceSection(batch_size=BATCH, topk=TOPK),
                ),
                dataset="benchmark",
                method="random",
                seed=0,
                predictions_output=str(root / "predictions.parquet"),
                metrics_output=str(root / "metrics.json"),
                train_predictions_output=str(root / "train_predictions.parquet"),
                device=device.type,
                threads=args.threads,
            )

        def command() -> None:
            predict(
                str(root / "model"),
                paths,
                output=str(root / "out.jsonl"),
                topk=TOPK,
                batch_size=BATCH,
                precision="bf16",
                device=device.type,
                threads=args.threads,
            )

        stage()  # warm-up
        times = []
        for pair in range(args.pairs):
            times.append((seconds(stage), seconds(command)))
            (clock, _), (other, _) = times[-1]
            print(
                f"pair {pair + 1}: evaluate {clock:.2f} s, predict {other:.2f} s",
                flush=True,
            )
        lines = (root / "out.jsonl").read_text("utf-8").splitlines()
        found = [
            json.loads(line)["topk_labels"] for line in lines[N_EXAMPLES:]
        ]  # of test images
        wanted = tables.read(root / "predictions.parquet", tables.PREDICTIONS)[
            "topk_labels"
        ]
        if found != wanted.to_pylist():
            raise SystemExit("The predictions differ.")
        share = share_of_checks(command)
    print(f"{device.type}, {args.images} images, {args.threads} threads")
    for what, place in (("clock", 0), ("CPU time", 1)):
        columns = [(of_stage[place], of_command[place]) for of_stage, of_command in times]
        print(summary(what, args.images, columns))
    print(f"checking the model: {share:.2%} of the CPU time of predict")


if __name__ == "__main__":
    main()
