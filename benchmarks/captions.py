"""Time the captioning stage against one image at a time, and against the bare engine.

    python benchmarks/captions.py [--images 1000] [--rounds 5] [--threads 1] [--bare]
    python benchmarks/captions.py --memory 2000 20000
    python benchmarks/captions.py --pictures

The same images and the same prompt, alternating, so that a busy machine slows all of them alike:

- one at a time with transformers: a `generate` for each of 100 images, as the authors do it.
- one at a time with vLLM: an `LLM.generate` for each of them.
- bare: one `LLM.generate` for all images, which are decoded before the clock starts.
- the stage: from the image index to the Parquet file, files read, hashed and decoded by worker
  processes and every answer stored. Its clock leaves out only the start of the engine.

With --bare only the last two.

Worker processes import this script anew: what is heavy is imported where it is used.

With --memory the stage runs once for each number of images of 1344 x 1344 pixels, in a process of
its own, whose largest resident memory is printed. In place of vLLM's LLM a stub holds as many bytes
of each picture as Qwen3-VL reads, and answers late. Otherwise the model is the demo's LLaVA without
a GPU. With one, give --model.

With --pictures nothing is asked. It prints the CPU time of requests about photographs: of worker
processes, which decode them, and of the processor of transformers, by which vLLM's process makes
them the model's input. It has the settings of the real models.
"""

import argparse
import importlib
import io
import itertools
import logging
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from PIL import Image

from latteclip.captions import answers, caption
from latteclip.captions.engine import messages
from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.engines.vllm import VllmEngine
from latteclip.captions.questions import Layout, Request
from latteclip.config import layers
from latteclip.config.keys import CaptionerSection
from latteclip.core import tables
from latteclip.core.tables import IndexMetadata
from latteclip.data.images import checksum, decode, open_rgb, read_bytes
from latteclip.data.splits import IndexSettings, read_split

DEMO = layers.PACKAGE / "demo" / "models" / "llava"
PROMPT = "Describe the texture in the photo concisely, less than 20 words."
ALONE = 100  # images for the two slow ways
DISTINCT = 500  # textures; further files differ in bytes that no decoder reads
Way = Callable[[], list[str]]


def settings_for(model: str | None) -> CaptionerSection:
    """Return the settings of the demo's LLaVA, or of a real model on a GPU."""
    small = model is None
    return CaptionerSection(
        engine="vllm",
        model=str(DEMO) if model is None else model,
        revision=None,
        dtype="float32" if small else "auto",
        max_new_tokens=40 if small else 77,
        max_model_len=256 if small else 4096,
        gpu_memory_utilization=0.9,
        batch_size=250 if small else 512,
        square_side=None,
    )


def make_images(folder: Path, n: int, side: int | None = None) -> str:
    """Write an index of n textures, no two files of the same bytes, and return its path."""
    shards = layers.PACKAGE / "demo" / "images"
    split = read_split(shards, IndexSettings(kind="webdataset"))
    items = split.items[: min(n, DISTINCT)]
    contents = [read_bytes(shards / item.path) for item in items]
    if side is not None:
        contents = [_enlarged(content, side) for content in contents[:10]]
    paths = [folder / "images" / f"{number:06d}.png" for number in range(n)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)] + number.to_bytes(8))
    tables.write(
        folder / "images.parquet",
        {
            "image_id": [path.name for path in paths],
            "path": [str(path) for path in paths],
            "split": ["train"] * n,
            "label": pa.nulls(n, pa.int32()),
            "classname": pa.nulls(n, pa.string()),
            "checksum": [checksum(path.read_bytes()) for path in paths],
            "hashes": pa.nulls(n, pa.binary(96)),
        },
        tables.IMAGES,
        IndexMetadata(["a", "b"]),
    )
    return str(folder / "images.parquet")


def _enlarged(content: bytes, side: int) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).resize((side, side)).save(file, "PNG")
    return file.getvalue()


class Holding:
    """Stands in for vLLM's LLM: it holds what a model would read of each picture."""

    def __init__(self, **_: object) -> None:
        self.llm_engine = self
        self.waiting: dict[str, np.ndarray] = {}
        self.numbers = map(str, itertools.count())

    def enqueue(self, asked: list[Any], *_: object, use_tqdm: bool) -> list[str]:
        """Hold 12 bytes a pixel: two frames in three colours and two bytes."""
        names = []
        for prompt in asked:
            [picture] = prompt["multi_modal_data"]["image"]
            names.append(next(self.numbers))
            size = 12 * picture.width * picture.height
            self.waiting[names[-1]] = np.ones(size, np.uint8)
        return names

    def step(self) -> list[Any]:
        """Answer the oldest prompt."""
        name = next(iter(self.waiting))
        self.waiting.pop(name)
        written = SimpleNamespace(
            text="A dot.", finish_reason="stop", token_ids=[1]
        )
        fields = {"request_id": name, "finished": True, "prompt_token_ids": [1]}
        return [SimpleNamespace(**fields, outputs=[written])]


class Ways:
    """The four ways to caption the same images. Each returns the captions in order."""

    def __init__(
        self, index: str, folder: Path, settings: CaptionerSection, threads: int
    ) -> None:
        self.index = index
        self.folder = folder
        self.settings = settings
        self.threads = threads
        paths = tables.read(index, ["path"])["path"].to_pylist()
        self.pictures = [open_rgb(path) for path in paths]
        started = time.perf_counter()
        self.vllm = VllmEngine(settings, threads)
        print(f"start of vLLM: {time.perf_counter() - started:.0f} s")
        started = time.perf_counter()
        self.transformers = TransformersEngine(settings, threads)
        print(f"start of transformers: {time.perf_counter() - started:.0f} s")
        processor = self.transformers._processor
        turn = messages([{"type": "image"}], PROMPT)
        self.rendered = processor.apply_chat_template(
            turn, add_generation_prompt=True
        )
        answers.start = lambda *_, **__: self.vllm

    def one_at_a_time_transformers(self) -> list[str]:
        return [
            answer.text
            for picture in self.pictures[:ALONE]
            for _, answer in self.transformers.answer(
                [Request(0, [picture], PROMPT)]
            )
        ]

    def one_at_a_time_vllm(self) -> list[str]:
        return [
            text
            for picture in self.pictures[:ALONE]
            for text in self._generate([picture])
        ]

    def bare(self) -> list[str]:
        return self._generate(self.pictures)

    def stage(self) -> list[str]:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            output = f"{folder}/captions.parquet"
            store = f"{folder}/store"
            threads = self.threads
            caption.caption_images(
                self.index,
                None,
                PROMPT,
                self.settings,
                output,
                store,
                threads=threads,
            )
            table = tables.read(output, ["caption"])
            captions: list[str] = table["caption"].to_pylist()
            return captions

    def _generate(self, pictures: list[Image.Image]) -> list[str]:
        prompts: list[Any] = [
            {"prompt": self.rendered, "multi_modal_data": {"image": picture}}
            for picture in pictures
        ]
        outputs = self.vllm._llm.generate(
            prompts, self.vllm._sampling, use_tqdm=False
        )
        return [output.outputs[0].text for output in outputs]


def compare(ways: Ways, rounds: int, bare: bool) -> None:
    """Alternate the ways, check that they agree, and print medians and ratios."""
    slow: dict[str, Way] = {
        "one at a time, transformers": ways.one_at_a_time_transformers,
        "one at a time, vLLM": ways.one_at_a_time_vllm,
    }
    fast: dict[str, Way] = {
        "bare LLM.generate": ways.bare,
        "the stage": ways.stage,
    }
    named = fast if bare else slow | fast
    rates: dict[str, list[float]] = {name: [] for name in named}
    # Of this process's CPU.
    seconds: dict[str, list[float]] = {name: [] for name in named}
    ways.bare()  # warm-up
    for number in range(rounds):
        texts = {}
        for name, way in named.items():
            started = time.perf_counter()
            used = time.process_time()
            texts[name] = [" ".join(text.split()) for text in way()]
            seconds[name].append(time.process_time() - used)
            rates[name].append(len(texts[name]) / (time.perf_counter() - started))
        agree = np.mean(
            [
                a == b
                for a, b in zip(
                    texts["the stage"], texts["bare LLM.generate"], strict=True
                )
            ]
        )
        line = ", ".join(
            f"{name} {values[-1]:.1f}/s" for name, values in rates.items()
        )
        print(
            f"round {number + 1}: {line}; {agree:.0%} equal captions", flush=True
        )
    for name, values in rates.items():
        print(
            f"{name}: {statistics.median(values):.1f} captions/s ({_spread(values)})"
        )
    for name in list(named)[:-1]:
        ratios = [
            a / b for a, b in zip(rates["the stage"], rates[name], strict=True)
        ]
        print(
            f"the stage / {name}: {statistics.median(ratios):.2f} ({_spread(ratios, 2)})"
        )
    pairs = zip(seconds["the stage"], seconds["bare LLM.generate"], strict=True)
    ratios = [a / b for a, b in pairs]
    print(
        "CPU time of the engine's process, the stage / bare LLM.generate: "
        f"{statistics.median(ratios):.2f} ({_spread(ratios, 2)})"
    )


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def measure_memory(n: int, threads: int) -> None:
    """Run the stage on n images. Print the largest resident memory of its processes."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("latteclip").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        index = make_images(Path(folder), n, side=1344)
        output = f"{folder}/captions.parquet"
        store = f"{folder}/store"
        engine: Any = importlib.import_module("vllm")
        engine.LLM = Holding
        caption.caption_images(
            index, None, PROMPT, settings_for(None), output, store, threads=threads
        )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{n} images: {own:.0f} MiB, the engine included", flush=True)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the median CPU time of a call by one thread."""
    torch.set_num_threads(1)
    work()  # the first call is slower
    seconds = []
    for _ in range(9):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def measure_pictures() -> None:
    """Print the CPU time of requests about photographs."""
    tiles = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    square = {"height": 336, "width": 336}
    llava = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size=square, image_grid_pinpoints=tiles
    )
    qwen = transformers.Qwen2VLImageProcessor(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 2**16, "longest_edge": 2**24},
    )
    kinds = {
        "LLaVA-1.6": (llava, Layout(None, None, 336), 1),
        "LLaVA-1.6, a group": (llava, Layout(672), 4),
        "Qwen3-VL-8B": (qwen, Layout(None, 1344), 1),
    }
    rng = np.random.default_rng(0)
    for width, height in ((1024, 768), (4000, 3000)):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height)).save(
            file, "JPEG", quality=90
        )
        content = file.getvalue()
        for name, (processor, layout, n) in kinds.items():

            def read(layout: Layout = layout, n: int = n) -> list[Image.Image]:
                images = [decode(content, layout.max_side) for _ in range(n)]  # noqa: B023
                return layout.pictures(images)

            pictures = read()
            reading = cpu_seconds(read)
            process = partial(processor, images=pictures, return_tensors="pt")
            processing = cpu_seconds(process)
            print(
                f"| {name} | {width} x {height} | {1000 * reading:.0f} ms | "
                f"{1000 * processing:.0f} ms |",
                flush=True,
            )


def main() -> None:
    """Print the rates, the memory, or the CPU time of pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--memory", type=int, nargs="+", metavar="N")
    parser.add_argument("--pictures", action="store_true")
    args = parser.parse_args()
    if args.pictures:
        measure_pictures()
        return
    if args.memory:
        for n in args.memory:
            process = multiprocessing.get_context("spawn").Process(
                target=measure_memory, args=(n, args.threads)
            )
            process.start()
            process.join()
        return
    settings = settings_for(args.model)
    device = (
        "GPU"
        if shutil.which("nvidia-smi")
        else f"no GPU, {args.threads} thread(s)"
    )
    print(f"{settings.model}, {args.images} images, {device}")
    with tempfile.TemporaryDirectory() as name:
        index = make_images(Path(name), args.images)
        compare(
            Ways(index, Path(name), settings, args.threads), args.rounds, args.bare
        )


if __name__ == "__main__":
    main()
