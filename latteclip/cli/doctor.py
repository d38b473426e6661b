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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests

from latteclip import __version__
from latteclip.config import hub_names, layers
from latteclip.config.configuration import Configuration
from latteclip.core import gpus
from latteclip.core.errors import UserError
from latteclip.core.files import existing
from latteclip.core.terminal import paint

log = logging.getLogger(__name__)
NOT_READY = 1  # exit status
GIB = 2**30
DISK_WANTED = 40  # GiB: LLaVA 1.6 with 7 billion parameters takes 15, the largest dataset 37
MEMORY_WANTED = 8  # GiB
VLLM_MEMORY = 3 * GIB  # that vLLM takes for CUDA, its graphs and a step, about
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
# A level (ok, note, or warning: it needs repair), and the text with the remedy.
Finding = tuple[str, str]
Check = Callable[[], Iterator[Finding]]


def doctor(config: Sequence[str] = (), configfile: Sequence[str] = ()) -> int:
    """Check this machine, and name what needs repair.

    Args:
        config: KEY=VALUE, as snakemake takes it: captioner={'batch_size':50}
        configfile: as snakemake takes it
    """
    status = 0
    checks: dict[str, Check] = {**CHECKS, "captioner": partial(captioner, config, configfile)}
    for name, check in checks.items():
        for level, text in findings(check):
            if level == "warning":
                status = NOT_READY
            coloured = paint(f"{level:7}", COLOURS[level], sys.stdout)
            print(f"{coloured}  {name:9}  {text}", flush=True)
    return status


def findings(check: Check) -> list[Finding]:
    """Return the results of a check. A check that fails itself is a warning."""
    try:
        return list(check())
    except UserError as error:
        return [("warning", str(error).removesuffix("."))]
    except Exception as error:  # the other checks are to run
        log.debug("A check failed.", exc_info=True)
        problem = f"could not be checked ({type(error).__name__}: {error})"
        return [("warning", f"{problem}; this is a bug: report it with the line")]


def python() -> Iterator[Finding]:
    """Report the versions of Python, of the package and of Snakemake."""
    versions = f"latteclip {__version__}, Snakemake {version('snakemake')}"
    yield "ok", f"Python {platform.python_version()}, {versions}"


def cpu() -> Iterator[Finding]:
    """Report the cores that this process may use."""
    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    level = "ok" if usable == all_cores else "note"
    yield level, f"{usable} of {all_cores} cores may be used; give snakemake -j{usable}"


def memory() -> Iterator[Finding]:
    """Report the main memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    level = "ok" if total >= MEMORY_WANTED else "warning"
    yield level, f"{total:.0f} GiB; the captioner and two jobs at once want {MEMORY_WANTED}"


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
        level = "ok" if free >= DISK_WANTED else "note" if free >= 2 else "warning"
        yield (
            level,
            f"{free:.0f} GiB free for {', '.join(names)} ({place}); a large dataset and LLaVA want "
            f"{DISK_WANTED}, the demo wants 1",
        )
        if not os.access(place, os.W_OK):
            yield "warning", f"{place} cannot be written to; change its permissions"


def gpu() -> Iterator[Finding]:
    """Report the GPUs that NVIDIA's driver shows, without torch, and the compiler for Triton."""
    if not _has_gpu():
        yield "note", "no NVIDIA GPU (nvidia-smi is not there); LLaVA would take days"
        return
    fields = "--query-gpu=name,memory.total,driver_version"
    run = _run("nvidia-smi", fields, "--format=csv,noheader")
    if run.returncode:
        yield "warning", f"nvidia-smi fails: {_last(run)}; {gpus.REPAIR}"
    else:
        yield from (("ok", line) for line in run.stdout.splitlines())
    if sentence := gpus.missing_compiler():
        yield "warning", sentence.removesuffix(".")


def torch() -> Iterator[Finding]:
    """Report whether torch imports, and the GPUs that it sees."""
    found = _import(TORCH)
    gpus.refuse_unusable(found["version"], found["cuda"], sees_none=not found["cards"])
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU build"
    yield "ok", f"torch {found['version']} ({build})"
    for card in found["cards"]:
        text = f"{card['name']}, {card['memory'] / GIB:.0f} GiB"
        if card["bf16"]:
            yield "ok", f"{text}, computes in bf16"
        else:
            yield "note", f"{text}, no bf16; set clip.precision to fp16"


def vllm() -> Iterator[Finding]:
    """Report whether vLLM imports, and its device."""
    found = _import(VLLM)
    text = f"vLLM {found['version']}, built for {found['device']}"
    if found["device"] != "cuda" and _has_gpu():
        yield "warning", f"{text}, though a GPU is there; run make install KIND=cuda"
    else:
        yield "ok", text


def captioner(pairs: Sequence[str], files: Sequence[str]) -> Iterator[Finding]:
    """Report what the weights of the captioner leave of a GPU's memory to vLLM, by their size."""
    if not _has_gpu():
        return
    configuration = Configuration(layers.defaults(), layers.given(pairs, files))
    values = configuration.section("captioner", configuration.datasets[0])
    if values["engine"] != "vllm":
        return
    model = values["model"]
    weights = sum(file.stat().st_size for file in _weights(model, values["revision"]))
    run = _run("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    if run.returncode or not weights:
        yield "note", f"{model} is not in the cache, or nvidia-smi fails"
        return
    memory = int(run.stdout.split()[0]) * 2**20 * values["gpu_memory_utilization"]
    rest = memory - weights / values["tensor_parallel_size"] - VLLM_MEMORY
    text = f"{model}: its weights leave about {rest / GIB:.1f} GiB of a GPU for requests"
    if rest > GIB:
        yield "ok", text
    else:
        yield (
            "warning",
            f"{text}; raise captioner.gpu_memory_utilization or captioner.tensor_parallel_size",
        )


def _weights(model: str, revision: str | None) -> list[Path]:
    """Return the weights of a captioner in a folder or in the cache of the hub, if it has them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = model
    if not hub_names.is_folder(model):
        try:
            folder = snapshot_download(model, revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            return []
    return [file for file in Path(folder).glob("*.safetensors") if "consolidated" not in file.name]


def hub() -> Iterator[Finding]:
    """Report whether Hugging Face can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield "note", "HF_HUB_OFFLINE is set; models must be in the cache, or local-dir: folders"
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        status = requests.head(address, timeout=HUB_TIMEOUT).status_code
        yield "ok", f"{address} answers ({status})"
    except requests.RequestException as error:
        yield (
            "warning",
            f"{address} does not answer ({type(error).__name__}); set https_proxy or HF_ENDPOINT, "
            "or HF_HUB_OFFLINE=1 where models are in the cache",
        )


def slurm() -> Iterator[Finding]:
    """Report whether SLURM works, and its partitions."""
    if shutil.which("sbatch") is None:
        yield "note", "no SLURM (sbatch is not there); jobs run on this machine"
        return
    for command in (["sbatch", "--version"], ["sinfo", "--format=%P %a %l %G"]):
        run = _run(*command)
        if run.returncode:
            yield "warning", f"{command[0]} fails: {_last(run)}; ask who runs the cluster"
            return
        yield from (("ok", line) for line in run.stdout.splitlines())
    if find_spec("snakemake_executor_plugin_slurm") is None:
        yield "warning", "pip install snakemake-executor-plugin-slurm, which Snakemake needs"


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _run(*command: str, timeout: float = TOOL_TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run a command. One that takes too long has the exit status 124, as of `timeout`."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {timeout} s")


def _last(run: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a failed process printed."""
    lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
    return lines[-1].strip() if lines else f"exit status {run.returncode}"


def _import(code: str) -> dict[str, Any]:
    """Return the JSON that code prints in a new interpreter.

    Raises:
        UserError: the interpreter fails.
    """
    run = _run(sys.executable, "-c", code, timeout=IMPORT_TIMEOUT)
    if run.returncode:
        raise UserError(f"It does not import: {_last(run)}; run make install again.")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (python, cpu, memory, disk, gpu, torch, vllm, hub, slurm)
}
