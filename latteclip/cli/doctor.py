"""Checks of this machine, each with one line and the remedy.

Torch and vLLM are imported in other processes, which a broken build may end.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import requests
from huggingface_hub import constants, try_to_load_from_cache

from latteclip import __version__
from latteclip.cli.status import output_of
from latteclip.config import checks, layers
from latteclip.config.resolve import Run
from latteclip.core import gpus
from latteclip.core.errors import GIB, UserError, first_line
from latteclip.core.files import existing
from latteclip.core.terminal import decisions_address, for_terminal, paint

NOT_READY = 1  # exit status
# GiB: LLaVA 1.6 with 7 billion parameters takes 15, the largest dataset 37.
DISK_WANTED = 40
DISK_NEEDED = 2  # GiB
MEMORY_WANTED = 8  # GiB
SLURM_FILES = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf")
HUB_TIMEOUT, IMPORT_TIMEOUT = 5, 180  # seconds
REFUSED = {401, 403}  # what a server answers without a valid key
COLOURS = {"ok": "green", "note": "bold", "warning": "yellow"}
TORCH = """
import json, torch
build = {"version": torch.__version__, "cuda": torch.version.cuda}
build["mps"] = torch.backends.mps.is_available()
print(json.dumps(build | {"gpus": torch.cuda.device_count()}))
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
    """
    status = 0
    all_checks: dict[str, Check] = {
        **CHECKS,
        "config": partial(configured, config, configfile),
        "captioner": partial(captioner, config, configfile),
    }
    for name, check in all_checks.items():
        for level, text in findings(check):
            if level == "warning":
                status = NOT_READY
            coloured = paint(f"{level:7}", COLOURS[level], sys.stdout)
            print(f"{coloured}  {name:9}  {for_terminal(text)}", flush=True)
    return status


def findings(check: Check) -> list[Finding]:
    """Return the results of a check. A check that fails itself is a warning."""
    try:
        return list(check())
    except Exception as error:  # the other checks are to run
        is_known = isinstance(error, UserError)
        text = str(error) if is_known else f"{first_line(error)}; report this bug"
        return [("warning", text.removesuffix("."))]


def machine() -> Iterator[Finding]:
    """Report versions, the cores, and the main memory."""
    versions = f"latteclip {__version__}, Snakemake {version('snakemake')}"
    yield "ok", f"Python {platform.python_version()}, {versions}"
    total = psutil.virtual_memory().total / GIB
    level = "ok" if total >= MEMORY_WANTED else "warning"
    wanted = f"the captioner and two jobs need {MEMORY_WANTED}"
    yield level, f"{os.cpu_count()} cores; {total:.0f} GiB of memory, {wanted}"
    if os.environ.get("SLURM_CONF") and not any(map(os.path.isfile, SLURM_FILES)):
        yield "warning", "srun inside a job does not see SLURM_CONF; see docs/cluster.md"


def disk() -> Iterator[Finding]:
    """Report the free space for results, downloads and models."""
    folders = ("results", "resources", constants.HF_HOME)
    for place in dict.fromkeys(map(existing, folders)):
        free = shutil.disk_usage(place).free / GIB
        level = "warning"
        if free >= DISK_WANTED:
            level = "ok"
        elif free >= DISK_NEEDED:
            level = "note"
        wanted = f"a large dataset and LLaVA need {DISK_WANTED}, the demo needs 1"
        yield level, f"{free:.0f} GiB free in {place}; {wanted}"
        if not os.access(place, os.W_OK):
            yield "warning", f"{place} cannot be written to; change its permissions"


def gpu() -> Iterator[Finding]:
    """Report the GPUs that NVIDIA's driver shows, without torch, and the compiler for Triton."""
    cards = gpus.query("name,memory.total,driver_version")
    if not cards:
        yield (
            "note",
            "no NVIDIA GPU (nvidia-smi is missing or shows none); LLaVA would take days",
        )
        return
    for name, megabytes, driver in cards:
        yield "ok", f"{name}, {megabytes} MiB, driver {driver}"
    if sentence := gpus.missing_compiler():
        yield "warning", sentence.removesuffix(".")


def torch() -> Iterator[Finding]:
    """Report whether torch imports, and whether it sees the GPUs."""
    build_info = _import(TORCH)
    if not build_info["gpus"]:
        gpus.refuse_unusable(build_info["version"], build_info["cuda"])
    build = f"CUDA {build_info['cuda']}" if build_info["cuda"] else "CPU build"
    seen = "Apple's GPU (mps)" if build_info["mps"] else f"{build_info['gpus']} GPUs"
    yield "ok", f"torch {build_info['version']} ({build}), which sees {seen}"


def vllm() -> Iterator[Finding]:
    """Report whether vLLM imports, and its device."""
    build_info = _import(VLLM)
    text = f"vLLM {build_info['version']}, built for {build_info['device']}"
    if build_info["device"] != "cuda" and gpus.visible():
        yield "warning", f"{text}, although there is a GPU; run make install KIND=cuda"
    else:
        yield "ok", text


def configured(pairs: Sequence[str], files: Sequence[str]) -> Iterator[Finding]:
    """Report whether a run with this configuration can start: its keys, folders and files."""
    run = Run(layers.defaults(), layers.given(pairs, files))
    checks.refuse_unready(run)
    yield "ok", f"a run of {', '.join(each.name for each in run.datasets)} can start"


def captioner(pairs: Sequence[str], files: Sequence[str]) -> Iterator[Finding]:
    """Report whether the captioner's server takes the key, or the cache has its model."""
    asker = Run(layers.defaults(), layers.given(pairs, files)).datasets[0].asker
    engine = asker.engine
    for names in filter(None, (model.names for model in asker.models)):
        yield _weights(str(names["model"]), names["revision"])
    if engine.address is None:
        return
    url = os.environ.get(engine.address, "").rstrip("/")
    if not url:
        yield "warning", f"the captioner needs a server; export {engine.address}"
        return
    if engine.decides:
        url = decisions_address(url)
    key = os.environ.get(str(engine.key), "").strip()
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    where = f"the server of {engine.address}"
    try:
        # Some servers have no such list. Those that ask for a key refuse a wrong one here as well.
        reply = requests.get(
            f"{url}/models", headers=headers, timeout=HUB_TIMEOUT, allow_redirects=False
        )
    except requests.RequestException as error:
        problem = f"{where} does not answer ({type(error).__name__}); see that it runs"
        yield "warning", problem
        return
    if reply.status_code in REFUSED:
        problem = f"{where} wants a valid key (HTTP {reply.status_code})"
        yield "warning", f"{problem}; export {engine.key}"
        return
    yield "ok", f"{where} answers"


def _weights(model: str, revision: str | None) -> Finding:
    """Return whether the cache of Hugging Face has the weights of a captioner."""
    config = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(config, str) and any(Path(config).parent.glob("*.safetensors")):
        return "ok", f"{model} is in the cache of Hugging Face"
    return "note", f"{model} is not in the cache of Hugging Face; a run downloads it"


def hub() -> Iterator[Finding]:
    """Report whether Hugging Face can be reached."""
    address = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        text = "HF_HUB_OFFLINE is set; models must be in the cache, or local-dir: folders"
        yield "note", text
        return
    try:
        reply = requests.head(address, timeout=HUB_TIMEOUT)
    except requests.RequestException as error:
        remedy = "set https_proxy or HF_ENDPOINT, or HF_HUB_OFFLINE=1 where models are in the cache"
        yield "warning", f"{address} does not answer ({type(error).__name__}); {remedy}"
    else:
        yield "ok", f"{address} answers ({reply.status_code})"


def _import(code: str) -> dict[str, Any]:
    """Return the JSON that code prints last in a new interpreter."""
    remedy = "run make install again"
    lines = output_of(sys.executable, "-c", code, remedy=remedy, timeout=IMPORT_TIMEOUT)
    return dict(json.loads(lines[-1]))


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (machine, disk, gpu, torch, vllm, hub)
}
