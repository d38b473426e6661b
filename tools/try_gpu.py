"""Try every stage on the GPU of this machine, about ten minutes, and compare it with the CPU.

    python tools/try_gpu.py [--json report.json] [--limit 128]

One line a check: ok, warning, or "not tried" with the reason. The demo runs on the CPU, on the GPU
in float32 and in bf16, and with vLLM. A training and an engine of vLLM get SIGTERM, and go on. Then
models of real shapes with random weights encode photographs. `--rehearse` lets a machine without a
GPU run all of it but the card and the real shapes.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import psutil
import timm
import torch
from PIL import Image

from latteclip.config import layers
from latteclip.core import gpus, tables
from latteclip.data import loader

METHODS = "zero_shot,latteclip,recommended"
# Largest difference of a feature, and least share of equal labels, by precision.
FEATURES = {"float32": (1e-4, 0.999), "bf16": (5e-2, 0.99)}
CAPTIONS = 0.95  # least share of equal captions
SCORES = 0.02  # largest difference of a class score
ACCURACY = 2.0  # largest difference in points
SHAPES = {  # of real models: the name, and images in a batch
    "open_clip ViT-B-32": 256,
    "open_clip ViT-B-16-SigLIP2-256": 256,
    "timm vit_base_patch14_reg4_dinov2": 256,
}
PHOTOGRAPHS = 512
# A training that lasts, and saves each of its steps.
LONG = ("finetune={'epochs': 60, 'lr': 1e-5}", "compute={'checkpoint_minutes': 0.0001}")
POLL = 0.05  # seconds
Finding = tuple[bool, str]  # whether it is as it should be, and what was found


def main() -> None:
    """Run all checks, print a line for each, and write them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file of all lines, as JSON"
    )
    parser.add_argument(
        "--limit", type=int, default=128, help="images of each split of the demo"
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, as if on a GPU")
    options = parser.parse_args()
    found = []
    has_gpu = options.rehearse or bool(gpus.visible())
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks(Path(folder), options.limit).items():
            started = time.monotonic()
            try:
                if "GPU" in name and not has_gpu:
                    raise NotTriedError("no NVIDIA GPU")
                is_good, text = check()
                level = "ok" if is_good else "warning"
            except NotTriedError as error:
                level = "not tried"
                text = str(error)
            except Exception as error:  # the other checks are to run
                level = "warning"
                text = f"{type(error).__name__}: {error}"
            seconds = round(time.monotonic() - started, 1)
            found.append({"check": name, "level": level, "text": text, "seconds": seconds})
            print(f"{level:9}  {name:33}  {text} ({seconds:.0f} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(each["level"] == "warning" for each in found))


class NotTriedError(Exception):
    """A check that this machine does not allow."""


def checks(folder: Path, limit: int) -> dict[str, Callable[[], Finding]]:
    """Return the checks by name, in the order in which they run."""
    cpu = Demo(folder / "cpu", limit, on_gpu=False)
    found: dict[str, Callable[[], Finding]] = {"card": card, "demo on the CPU": cpu.run}
    for precision in FEATURES:
        gpu = Demo(folder / precision, limit, precision=precision)
        found[f"demo on the GPU, {precision}"] = gpu.run
        found |= {
            f"{what} of the GPU, {precision}": check
            for what, check in gpu.compared(cpu).items()
        }
    found["SIGTERM to a training on the GPU"] = gpu.interrupted_training
    vllm = Demo(folder / "vllm", limit, engine="vllm", precision="float32")
    found["demo by vLLM"] = vllm.run
    found["captions of vLLM"] = lambda: vllm.captions(cpu)
    found["SIGTERM to vLLM"] = vllm.interrupted_captions
    found["engines that vLLM left"] = engines_left
    for shape, size in SHAPES.items():
        found[shape] = lambda shape=shape, size=size: real_shape(shape, size, folder)  # type: ignore[misc]
    return found


def card() -> Finding:
    """Return the card and its driver, and whether two processes take turns on it."""
    cards = gpus.query("name,driver_version,memory.total")
    if not gpus.visible():
        raise NotTriedError("no NVIDIA GPU")
    claim = "import os, time; from latteclip.core import gpus; gpus.claim()"
    claim += "; print(os.environ['LATTECLIP_GPUS']); time.sleep(3)"
    command = [sys.executable, "-c", claim]
    started = time.monotonic()
    with subprocess.Popen(command):
        time.sleep(1)
        subprocess.run(command, check=True)
    both = time.monotonic() - started
    took_turns = both >= 6 or len(gpus.visible()) > 1
    return took_turns, f"{cards}, torch {torch.__version__}, two claims in {both:.1f} s"


class Demo:
    """A run of the demo in a folder of its own, and what it wrote."""

    def __init__(
        self,
        folder: Path,
        limit: int,
        *,
        on_gpu: bool = True,
        engine: str = "transformers",
        precision: str = "float32",
    ) -> None:
        self.folder = folder
        self.on_gpu = on_gpu
        self.results = folder / "results" / f"demo_{limit}"
        self.given = [
            *("dataset=demo", f"limit={limit}", f"method={METHODS}", "seeds=1"),
            *(f"captioner={{'engine': '{engine}'}}", "scores={'kind': 'likelihood'}"),
            f"clip={{'precision': '{precision}'}}",
        ]

    def run(self) -> Finding:
        """Run all stages, and return the accuracies."""
        self.folder.mkdir()
        run = self.started()
        _, printed = run.communicate()
        if run.returncode:
            errors = [line for line in printed.splitlines() if "error" in line.lower()]
            return False, " ".join(errors[-1:]) or f"exit status {run.returncode}"
        return True, ", ".join(f"{k} {v:.1f}" for k, v in self.accuracies().items())

    def started(self, *targets: str, given: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start the workflow in the folder."""
        environment = dict(os.environ) if self.on_gpu else {**os.environ, gpus.VISIBLE: ""}
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(layers.SNAKEFILE)]
        command += ["--directory", str(self.folder), "--cores", "all", "--quiet", "all"]
        command += ["--config", *self.given, *given, *targets]
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def interrupted_training(self) -> Finding:
        """End a training after a few steps by SIGTERM, and let the next run go on."""
        run = self.results / "latteclip" / "seed0"
        target = run / "model"
        log = run / "logs" / "finetune.log"
        return self.interrupted(
            target,
            log,
            "finetune",
            lambda: any(run.rglob("checkpoint/*.pt")),
            "Resuming",
            LONG,
        )

    def interrupted_captions(self) -> Finding:
        """End an engine at work by SIGTERM, and let the next run go on."""
        log = self.results / "logs" / "caption_images.log"
        target = self.results / "captions" / "images.parquet"
        shutil.rmtree(self.folder / "resources" / "demo" / "captions")  # its answers

        def is_at_work() -> bool:
            return log.exists() and " started in " in log.read_text("utf-8")

        return self.interrupted(target, log, "caption-images", is_at_work, "Asked ")

    def interrupted(
        self,
        target: Path,
        log: Path,
        command: str,
        is_at_work: Callable[[], bool],
        mark: str,
        given: Sequence[str] = (),
    ) -> Finding:
        """Make a target again, with SIGTERM to its command at work and another run after it.

        The log of the second run must have the mark.
        """
        name = str(target.relative_to(self.folder))
        log.unlink(missing_ok=True)
        first = self.started("--forcerun", name, "--", name, given=given)
        while first.poll() is None and not is_at_work():
            time.sleep(POLL)
        if first.poll() is not None:
            return False, f"{command} ended before the signal"
        signalled = 0
        for process in psutil.Process(first.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if command in process.cmdline():
                    process.send_signal(signal.SIGTERM)
                    signalled += 1
        first.communicate()
        if not signalled or first.returncode == 0:
            return False, f"{command} ended before the signal"
        second = self.started("--", name, given=given)
        second.communicate()
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        marked = [line for line in lines if mark in line]
        is_good = second.returncode == 0 and bool(marked) and target.exists()
        text = (
            marked[-1]
            if marked
            else f"exit status {second.returncode}, no {mark!r} in {log}"
        )
        return is_good, text

    def accuracies(self) -> dict[str, float]:
        """Return the accuracy of each method in percent."""
        files = sorted(self.results.glob("*/seed0/metrics.json"))
        return {
            file.parts[-3]: json.loads(file.read_text())["acc1"] * 100 for file in files
        }

    def compared(self, other: "Demo") -> dict[str, Callable[[], Finding]]:
        """Return checks that compare this run with another one."""
        return {
            "features and labels": lambda: self.features(other),
            "captions": lambda: self.captions(other),
            "likelihoods": lambda: self.likelihoods(other),
            "accuracies": lambda: self.close_accuracies(other),
        }

    def column(self, name: str, schema: Any, column: str) -> list[Any]:
        table = tables.read(self.results / name, schema, [column])
        return list(table[column].to_pylist())

    def features(self, other: "Demo") -> Finding:
        """Compare features of the images and their labels."""
        file = "pseudo_labels.parquet"
        schema = tables.PSEUDO_LABELS
        pair = [
            np.array(each.column(file, schema, "image_features")) for each in (self, other)
        ]
        labels = [
            np.array(each.column(file, schema, "pseudo_label")) for each in (self, other)
        ]
        difference = float(np.abs(pair[0] - pair[1]).max())
        equal = float(np.mean(labels[0] == labels[1]))
        most, least = FEATURES["bf16" if "bf16" in self.given[-1] else "float32"]
        is_good = difference <= most and equal >= least
        return (
            is_good,
            f"features differ by {difference:.1e} at most, {equal:.1%} of labels equal",
        )

    def captions(self, other: "Demo") -> Finding:
        """Compare the captions of images and groups."""
        equal = []
        for kind in ("images", "groups"):
            name = f"captions/{kind}.parquet"
            mine, theirs = (
                x.column(name, tables.CAPTIONS, "caption") for x in (self, other)
            )
            equal += [one == two for one, two in zip(mine, theirs, strict=True)]
        share = sum(equal) / len(equal)
        return share >= CAPTIONS, f"{share:.1%} of {len(equal)} captions equal"

    def likelihoods(self, other: "Demo") -> Finding:
        """Compare the class scores."""
        pair = [
            np.array(
                each.column(
                    "class_scores.parquet", tables.CLASS_SCORES, "log_probabilities"
                )
            )
            for each in (self, other)
        ]
        difference = float(np.abs(pair[0] - pair[1]).max())
        return difference <= SCORES, f"scores differ by {difference:.1e} at most"

    def close_accuracies(self, other: "Demo") -> Finding:
        """Compare the accuracies of all methods."""
        mine = self.accuracies()
        theirs = other.accuracies()
        difference = max(abs(value - theirs[name]) for name, value in mine.items())
        return (
            difference <= ACCURACY,
            f"accuracies differ by {difference:.1f} points at most",
        )


def engines_left() -> Finding:
    """Return whether an engine of vLLM outlived its job."""
    left = [
        p.pid
        for p in psutil.process_iter(["name"])
        if "EngineCore" in (p.info["name"] or "")
    ]
    return not left, f"processes {left}" if left else "none"


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
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        encode = model
    model.eval().cuda()
    files = loader.ImageFiles([*photographs(folder)], transform)
    order = loader.in_order(len(files), batch_size)
    threads = os.cpu_count() or 1
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _, images in loader.batches(files, order, torch.device("cuda"), threads):
            encode(images)
    torch.cuda.synchronize()
    rate = len(files) / (time.monotonic() - started)
    of_gpu = torch.cuda.max_memory_allocated() / 2**30
    usage = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
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
            grid = Image.fromarray(rng.integers(0, 256, (188, 250, 3), dtype=np.uint8))
            grid.resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
    yield from (str(folder / f"{number % 8}.jpg") for number in range(PHOTOGRAPHS))


if __name__ == "__main__":
    main()
