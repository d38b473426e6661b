"""Try every stage on the GPU of this machine, about ten minutes, and compare it with the CPU.

    python tools/try_gpu.py [--report report.md] [--json report.json] [--limit 128]

One line a check: ok, warning, or "not tried" with the reason.
`--rehearse` lets a machine without a GPU run all that needs no card, no weights of the hub and no
SLURM.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import try_models
from try_models import Finding, NotTriedError

from latteclip.config import layers
from latteclip.core import devices, tables

# Methods by precision. Without any, only features and labels are compared.
METHODS = {
    "float32": "zero_shot,latteclip",
    "bf16": "zero_shot,latteclip,recommended",
}
# Least cosine of a feature with that of the CPU in float32, and least share of equal labels.
FEATURES = {
    "float32": (0.999999, 0.999),
    "bf16": (0.999, 0.99),
    "fp16": (0.9999, 0.99),
}
LABELS, SCORES_TABLE = "pseudo_labels.parquet", "class_scores.parquet"
CAPTIONS_TABLES = ("captions/images.parquet", "captions/groups.parquet")
CAPTIONS = 0.95  # least share of equal captions
SCORES = 0.02  # largest difference of a class score
ACCURACY = 2.0  # largest difference in points
BLACKWELL = 10.0  # compute capability of a B200
# No server is there: what asks the internet fails at once.
NO_INTERNET = dict.fromkeys(
    ("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"
)
# A training that lasts, and saves each of its steps.
LONG = (
    "finetune={'epochs': 20, 'lr': 1e-5}",
    "compute={'checkpoint_minutes': 0.0001}",
)
POLL = 0.05  # seconds
USED = re.compile(r"This job uses ([\w-]+)")


def main() -> None:
    """Run all checks, print a line for each, and write them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file of all lines, as JSON"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="a page for an issue, in Markdown",
    )
    parser.add_argument(
        "--limit", type=int, default=128, help="images of each split of the demo"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, as if on a GPU"
    )
    options = parser.parse_args()
    found = []
    has_gpu = options.rehearse or bool(devices.visible())
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
            found.append(
                {"check": name, "level": level, "text": text, "seconds": seconds}
            )
            print(f"{level:9}  {name:33}  {text} ({seconds:.0f} s)", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps(found, indent=1) + "\n", encoding="utf-8"
        )
    if options.report:
        options.report.write_text(page(found), encoding="utf-8")
    sys.exit(any(each["level"] == "warning" for each in found))


def page(found: Sequence[dict[str, Any]]) -> str:
    """Return a table of all lines in Markdown, warnings first, without this user's folder."""
    lines = ["| level | check | found | seconds |", "|---|---|---|---|"]
    for each in sorted(found, key=lambda each: each["level"] != "warning"):
        text = " ".join(each["text"].split()).replace("|", "/")
        text = text.replace(str(Path.home()), "~")
        lines.append(
            f"| {each['level']} | {each['check']} | {text} | {each['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def checks(folder: Path, limit: int) -> dict[str, Callable[[], Finding]]:
    """Return the checks by name, in the order in which they run."""
    cpu = Demo(folder / "cpu", limit, on_gpu=False)
    found: dict[str, Callable[[], Finding]] = {
        "card": card,
        "demo on the CPU": cpu.run,
    }
    for precision in METHODS:
        gpu = Demo(folder / precision, limit, precision=precision)
        found |= {
            f"demo on the GPU, {precision}": gpu.run,
            f"features and labels of the GPU, {precision}": partial(
                gpu.features, cpu
            ),
            f"captions of the GPU, {precision}": partial(gpu.captions, cpu),
            f"likelihoods of the GPU, {precision}": partial(gpu.likelihoods, cpu),
            f"accuracies of the GPU, {precision}": partial(
                gpu.close_accuracies, cpu
            ),
        }
    found["SIGTERM to a training on the GPU"] = gpu.interrupted_training
    half = Demo(folder / "fp16", limit, precision="fp16")
    found["labels on the GPU, fp16"] = partial(half.run, LABELS)
    found["features and labels of the GPU, fp16"] = partial(half.features, cpu)
    vllm = Demo(folder / "vllm", limit, engine="vllm")
    found |= {
        "demo by vLLM": lambda: vllm.run(*CAPTIONS_TABLES, SCORES_TABLE),
        "captions of vLLM": lambda: vllm.captions(cpu),
        "likelihoods of vLLM": lambda: vllm.likelihoods(cpu),
        "SIGTERM to vLLM": vllm.interrupted_captions,
        "engines that vLLM left": engines_left,
        "tests on the GPU": tests,
        "vLLM without internet on a B200": lambda: without_internet(folder, limit),
        "cards of a SLURM job": lambda: cards_of_a_job(folder, limit),
        "SigLIP 2's texts": try_models.siglip_texts,
        "SigLIP 2's weights": try_models.siglip_weights,
        "DINOv2's weights": try_models.dino_weights,
    }
    for shape, size in try_models.SHAPES.items():
        found[shape] = partial(try_models.real_shape, shape, size, folder)
    return found


def without_internet(folder: Path, limit: int) -> Finding:
    """Caption by vLLM on a B200, with empty caches and no way to fetch kernels or weights."""
    capability = max(
        (float(each) for [each] in devices.query("compute_cap")), default=0.0
    )
    if capability < BLACKWELL:
        raise NotTriedError(f"compute capability {capability}, not {BLACKWELL}")
    caches = {"VLLM_CACHE_ROOT": "vllm", "FLASHINFER_WORKSPACE_BASE": "flashinfer"}
    demo = Demo(folder / "b200", limit, engine="vllm")
    demo.environment |= NO_INTERNET | {"HF_HUB_OFFLINE": "1"}
    demo.environment |= {
        key: str(folder / "caches" / name) for key, name in caches.items()
    }
    return demo.run(*CAPTIONS_TABLES)


def cards_of_a_job(folder: Path, limit: int) -> Finding:
    """Caption in as many shards as a SLURM job has cards, each by a process and card of its own."""
    n = len(devices.visible())
    if "SLURM_JOB_ID" not in os.environ or n < 2:
        raise NotTriedError("no SLURM job of several cards (salloc --gpus=2)")
    demo = Demo(folder / "cards", limit, engine="vllm", shards=n)
    is_good, text = demo.run(CAPTIONS_TABLES[0])
    logs = [*demo.results.glob(f"logs/caption_images-*-of-{n}.log")]
    used = {
        match[1] for log in logs if (match := USED.search(log.read_text("utf-8")))
    }
    return is_good and len(
        used
    ) == n, f"{n} cards, shards used {sorted(used)}; {text}"


def card() -> Finding:
    """Return the card and its driver, and whether two processes take turns on it."""
    cards = devices.query("name,driver_version,memory.total")
    if not devices.visible():
        raise NotTriedError("no NVIDIA GPU")
    claim = "import os, time; from latteclip.core import devices; devices.claim()"
    claim += "; print(os.environ['LATTECLIP_GPUS']); time.sleep(3)"
    command = [sys.executable, "-c", claim]
    started = time.monotonic()
    with subprocess.Popen(command):
        time.sleep(1)
        subprocess.run(command, check=True)
    both = time.monotonic() - started
    took_turns = both >= 6 or len(devices.visible()) > 1
    return (
        took_turns,
        f"{cards}, torch {torch.__version__}, two claims in {both:.1f} s",
    )


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
        shards: int = 1,
    ) -> None:
        self.folder = folder
        self.environment = (
            dict(os.environ) if on_gpu else {**os.environ, devices.VISIBLE: ""}
        )
        self.precision = precision
        self.results = folder / "results" / f"demo_{limit}"
        self.given = [
            *("dataset=demo", f"limit={limit}", "seeds=1"),
            f"method={METHODS.get(precision, 'zero_shot')}",
            *(
                f"captioner={{'engine': '{engine}'}}",
                "scores={'kind': 'likelihood'}",
            ),
            *(
                f"clip={{'precision': '{precision}'}}",
                f"compute={{'shards': {shards}}}",
            ),
        ]

    def run(self, *files: str) -> Finding:
        """Make these results, or all, and return the accuracies."""
        self.folder.mkdir()
        targets = [
            str(self.results.relative_to(self.folder) / file) for file in files
        ]
        run = self.started("--", *targets)
        _, printed = run.communicate()
        if run.returncode:
            errors = [
                line for line in printed.splitlines() if "error" in line.lower()
            ]
            return False, " ".join(errors[-1:]) or f"exit status {run.returncode}"
        accuracies = (
            f"{name} {value:.1f}" for name, value in self.accuracies().items()
        )
        return True, ", ".join(accuracies) or "done"

    def started(
        self, *targets: str, given: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start the workflow in the folder."""
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(layers.SNAKEFILE),
        ]
        command += [
            "--directory",
            str(self.folder),
            "--cores",
            "all",
            "--quiet",
            "all",
        ]
        command += ["--config", *self.given, *given, *targets]
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, env=self.environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

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
        # Its answers.
        shutil.rmtree(self.folder / "resources" / "demo" / "captions")

        def is_at_work() -> bool:
            return log.exists() and " started in " in log.read_text("utf-8")

        return self.interrupted(
            target, log, "caption-images", is_at_work, "Asked "
        )

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
            file.parts[-3]: json.loads(file.read_text())["acc1"] * 100
            for file in files
        }

    def column(self, name: str, schema: Any, column: str) -> list[Any]:
        table = tables.read(self.results / name, [column])
        return list(table[column].to_pylist())

    def features(self, other: "Demo") -> Finding:
        """Compare features of the images and their labels."""
        features, labels = (
            [
                np.array(each.column(LABELS, tables.PSEUDO_LABELS, name))
                for each in (self, other)
            ]
            for name in ("image_features", "pseudo_label")
        )
        cosine = float((features[0] * features[1]).sum(axis=1).min())
        equal = float(np.mean(labels[0] == labels[1]))
        least_cosine, least_equal = FEATURES[self.precision]
        is_good = cosine >= least_cosine and equal >= least_equal
        return (
            is_good,
            f"cosines {cosine:.6f} at least, {equal:.1%} of labels equal",
        )

    def captions(self, other: "Demo") -> Finding:
        """Compare the captions of images and groups."""
        equal = []
        for name in CAPTIONS_TABLES:
            mine, theirs = (
                x.column(name, tables.CAPTIONS, "caption") for x in (self, other)
            )
            equal += [one == two for one, two in zip(mine, theirs, strict=True)]
        share = sum(equal) / len(equal)
        return share >= CAPTIONS, f"{share:.1%} of {len(equal)} captions equal"

    def likelihoods(self, other: "Demo") -> Finding:
        """Compare the class scores."""
        schema = tables.CLASS_SCORES
        pair = [
            np.array(each.column(SCORES_TABLE, schema, "log_probabilities"))
            for each in (self, other)
        ]
        difference = float(np.abs(pair[0] - pair[1]).max())
        return difference <= SCORES, f"scores differ by {difference:.1e} at most"

    def close_accuracies(self, other: "Demo") -> Finding:
        """Compare the accuracies of the methods that both runs have."""
        mine, theirs = self.accuracies(), other.accuracies()
        difference = max(abs(mine[name] - value) for name, value in theirs.items())
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


def tests() -> Finding:
    """Run the tests that a GPU may answer otherwise, as `make test-gpu` does."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    if not (layers.ROOT / "tests").is_dir():
        raise NotTriedError("no clone of the repository, whose tests these are")
    run = subprocess.run(command, cwd=layers.ROOT, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if "FAILED" in line]
    return run.returncode == 0, "; ".join([*lines, *run.stdout.splitlines()[-1:]])


if __name__ == "__main__":
    main()
