"""Checks of this machine, each with one line and the remedy.

Torch and vLLM are imported in other processes, which a broken build may end.
"""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from latteclip import __version__
from latteclip.captions.engines.base import CaptionerSettings
from latteclip.cli import vllm_memory
from latteclip.config import layers
from latteclip.config.configuration import Configuration
from latteclip.core import gpus
from latteclip.core.errors import UserError
from latteclip.core.files import existing
from latteclip.core.settings import from_values
from latteclip.core.terminal import paint

log = logging.getLogger(__name__)
GIB = 2**30
DISK_WANTED = 40  # GiB: LLaVA 1.6 with 7 billion parameters takes 15, the largest dataset 37
MEMORY_WANTED = 8  # GiB
HUB_TIMEOUT, IMPORT_TIMEOUT, TOOL_TIMEOUT = 5, 180, 20  # seconds
COLOURS = {"ok": "green", "note": "bold", "warning": "yellow"}
TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "cards": []}
for i in range(torch.cuda.device_count()):
    card = torch.cuda.get_device_properties(i)
    with torch.cuda.device(i):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found["cards"].append({"name": card.name, "memory": card.total_memory, "bf16": bf16})
print(json.dumps(found))
"""
VLLM = """
import json, vllm
from vllm.platforms import current_platform
print(json.dumps({"version": vllm.__version__, "device": current_platform.device_type}))
"""
CAPTIONER = """
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path
import torch, transformers
from huggingface_hub import snapshot_download
model, revision = json.loads(sys.argv[1])
config = transformers.AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
cached = lambda: snapshot_download(model, revision=revision, ignore_patterns="*")
folder = Path(model if os.path.isdir(model) else cached())
files = [path for path in folder.glob("*.safetensors") if "consolidated" not in path.name]
print(json.dumps({
    "config": json.loads(config.to_json_string(use_diff=False)),
    "weights": sum(path.stat().st_size for path in files),
    "memory": torch.cuda.get_device_properties(0).total_memory,
}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the output."""

    level: str  # ok, note, or warning: it needs repair
    text: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]
ok, note, warning = (partial(Finding, level) for level in ("ok", "note", "warning"))


def doctor(pairs: Sequence[str], files: Sequence[str], stream: TextIO) -> bool:
    """Run all checks and print their lines. Return whether none is a warning.

    Args:
        pairs: KEY=VALUE over the configuration, as snakemake's --config takes them.
        files: configuration files, as its --configfile takes them.
        stream: for the lines.
    """
    good = True
    checks: dict[str, Check] = {**CHECKS, "kv-cache": partial(captioner, pairs, files)}
    for name, check in checks.items():
        for finding in findings(check):
            good &= finding.level != "warning"
            level = paint(f"{finding.level:7}", COLOURS[finding.level], stream)
            advice = f"; {finding.advice}" if finding.advice else ""
            print(f"{level}  {name:9}  {finding.text}{advice}", file=stream, flush=True)
    return good


def findings(check: Check) -> list[Finding]:
    """Return the results of a check. A check that fails itself is a warning."""
    try:
        return list(check())
    except Exception as error:  # the other checks are to run
        log.debug("A check failed.", exc_info=True)
        problem = f"could not be checked ({type(error).__name__}: {error})"
        return [warning(problem, "this is a bug: report it with the line")]


def python() -> Iterator[Finding]:
    """Report the versions of Python, of the package and of Snakemake."""
    versions = f"latteclip {__version__}, Snakemake {version('snakemake')}"
    yield ok(f"Python {platform.python_version()}, {versions}")


def cpu() -> Iterator[Finding]:
    """Report the cores that this process may use."""
    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    text = f"{usable} of {all_cores} cores may be used"
    yield note(text, f"give snakemake -j{usable}") if usable < all_cores else ok(text)


def memory() -> Iterator[Finding]:
    """Report the main memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if total < MEMORY_WANTED:
        yield warning(f"{total:.0f} GiB", "the captioner and two jobs at once want 8 GiB or more")
    else:
        yield ok(f"{total:.0f} GiB")


def disk() -> Iterator[Finding]:
    """Report the free space for results, downloads and models."""
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    folders = {"results": Path("results"), "resources": Path("resources"), "models": cache}
    devices: dict[int, tuple[Path, list[str]]] = {}
    for name, path in folders.items():
        place = existing(path)
        devices.setdefault(place.stat().st_dev, (place, []))[1].append(name)
    for place, names in devices.values():
        free = shutil.disk_usage(place).free / GIB
        text = f"{free:.0f} GiB free for {', '.join(names)} ({place})"
        if not os.access(place, os.W_OK):
            yield warning(f"{place} cannot be written to", "change its permissions")
        elif free < DISK_WANTED:
            advice = f"a large dataset and LLaVA want {DISK_WANTED}; the demo wants 1"
            yield Finding("warning" if free < 2 else "note", text, advice)
        else:
            yield ok(text)


def gpu() -> Iterator[Finding]:
    """Report the GPUs that NVIDIA's driver shows, without torch, and the compiler for Triton."""
    if not _has_gpu():
        yield note(
            "no NVIDIA GPU (nvidia-smi is not there)",
            "the demo runs; captions of a real dataset by LLaVA would take days",
        )
        return
    fields = "--query-gpu=name,memory.total,driver_version"
    run = _run(["nvidia-smi", fields, "--format=csv,noheader"])
    if run.returncode:
        yield warning(f"nvidia-smi fails: {_last(run)}", gpus.REPAIR)
    else:
        yield from map(ok, run.stdout.splitlines())
    if sentence := gpus.missing_compiler():
        yield warning(sentence.removesuffix("."))


def torch() -> Iterator[Finding]:
    """Report whether torch imports, and the GPUs that it sees."""
    found, problem = _import(TORCH)
    if found is None:
        yield warning(f"torch does not import: {problem}", "run make install again")
        return
    try:
        gpus.refuse_unusable(found["version"], found["cuda"], sees_none=not found["cards"])
    except UserError as error:
        yield warning(str(error).removesuffix("."))
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU build"
    yield ok(f"torch {found['version']} ({build})")
    for card in found["cards"]:
        text = f"{card['name']}, {card['memory'] / GIB:.0f} GiB"
        if card["bf16"]:
            yield ok(f"{text}, computes in bf16")
        else:
            yield note(f"{text}, no bf16", "set clip.precision to fp16")


def vllm() -> Iterator[Finding]:
    """Report whether vLLM imports, and its device."""
    found, problem = _import(VLLM)
    if found is None:
        yield warning(
            f"vLLM does not import: {problem}",
            "run make install again, or caption with \"captioner={'engine': 'transformers'}\"",
        )
        return
    text = f"vLLM {found['version']}, built for {found['device']}"
    if found["device"] != "cuda" and _has_gpu():
        yield warning(f"{text}, though a GPU is there", "run make install KIND=cuda")
    else:
        yield ok(text)


def captioner(pairs: Sequence[str], files: Sequence[str]) -> Iterator[Finding]:
    """Report how vLLM would divide a GPU's memory for the configured captioner, by arithmetic."""
    if not _has_gpu():
        return
    try:
        configuration = Configuration(layers.defaults(), layers.given(pairs, files))
        values = configuration.section("captioner", configuration.datasets[0])
        settings = from_values(CaptionerSettings, values, "captioner")
    except UserError as error:
        yield warning(str(error).removesuffix("."))
        return
    if settings.engine != "vllm":
        return
    found, _ = _import(CAPTIONER, json.dumps([settings.model, settings.revision]))
    if found is None or not found["weights"]:
        yield note(f"{settings.model} is not in the cache, or torch sees no GPU")
        return
    plan = vllm_memory.plan(found["config"], found["weights"], found["memory"], settings)
    text = (
        f"{settings.model} by arithmetic: of {found['memory'] / GIB:.1f} GiB, weights "
        f"{plan.weights / GIB:.1f} and cache {max(0.0, plan.cache) / GIB:.1f}, for {plan.requests} "
        f"requests of {settings.max_model_len:,} tokens at once"
    )
    if plan.requests:
        yield ok(text)
    else:
        yield warning(
            text,
            "lower captioner.batch_size and captioner.max_model_len, or raise "
            "captioner.gpu_memory_utilization or captioner.tensor_parallel_size",
        )


def hub() -> Iterator[Finding]:
    """Report whether Hugging Face can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield note("HF_HUB_OFFLINE is set", "models must be in the cache, or local-dir: folders")
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT) as answer:
            yield ok(f"{address} answers ({answer.status})")
    except urllib.error.HTTPError as error:
        yield ok(f"{address} answers ({error.code})")
    except (OSError, ValueError) as error:
        yield warning(
            f"{address} does not answer ({getattr(error, 'reason', error)})",
            "set https_proxy or HF_ENDPOINT, or HF_HUB_OFFLINE=1 where models are in the cache",
        )


def slurm() -> Iterator[Finding]:
    """Report whether SLURM works, and its partitions."""
    if shutil.which("sbatch") is None:
        yield note("no SLURM (sbatch is not there)", "jobs run on this machine")
        return
    lines = []
    for command in (["sbatch", "--version"], ["sinfo", "--noheader", "--format=%P %a %l %G"]):
        run = _run(command)
        if run.returncode:
            yield warning(f"{command[0]} fails: {_last(run)}", "ask who runs the cluster")
            return
        lines += run.stdout.splitlines()
    yield ok(lines[0])
    for line in lines[1:]:
        name, state, limit, devices = line.split(maxsplit=3)
        yield ok(f"partition {name}: {state}, at most {limit}, devices {devices}")
    if find_spec("snakemake_executor_plugin_slurm") is None:
        yield warning(
            "Snakemake lacks its plugin for SLURM", "pip install snakemake-executor-plugin-slurm"
        )


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _run(command: Sequence[str], timeout: float = TOOL_TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run a command. One that takes too long has the exit status 124, as of `timeout`."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {timeout} s")


def _last(run: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a failed process printed."""
    lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
    return lines[-1].strip() if lines else f"exit status {run.returncode}"


def _import(code: str, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON that code prints in a new interpreter, or None and the error."""
    run = _run([sys.executable, "-c", code, *arguments], IMPORT_TIMEOUT)
    if run.returncode:
        return None, _last(run)
    return json.loads(run.stdout.splitlines()[-1]), ""


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (python, cpu, memory, disk, gpu, torch, vllm, hub, slurm)
}
