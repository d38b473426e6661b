"""Checks of this machine, each with one line and the remedy.

Torch and vLLM are imported in other processes, which a broken build may end.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import psutil
import requests
from huggingface_hub import constants

from latteclip import __version__
from latteclip.config import layers
from latteclip.config.resolve import Run
from latteclip.core import devices
from latteclip.core.errors import GIB, UserError, first_line
from latteclip.core.files import IMAGES, existing
from latteclip.core.terminal import decisions_address, for_terminal

NOT_READY = 1  # exit status
DISK_NEEDED = 2  # GiB
MEMORY_WANTED = 8  # GiB
HUB_TIMEOUT, IMPORT_TIMEOUT = 5, 180  # seconds
REFUSED = {401, 403}  # what a server answers without a valid key
TORCH = """
import torch
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.device_count()]))
"""
VLLM = """
import vllm
from vllm.platforms import current_platform
print(json.dumps([vllm.__version__, current_platform.device_type]))
"""
# A level (ok, note, or warning: it needs repair), and the text with the remedy.
Finding = tuple[str, str]
Check = Callable[[], Iterator[Finding]]


def doctor(config: Sequence[str] = (), configfile: Sequence[str] = ()) -> int:
    """Check this machine and the server of the captioner, and name what needs repair.

    The captioner is that of the first configured dataset, or of the one that --config names.

    Args:
        config: KEY=VALUE, as snakemake takes it: dataset=mine captioner={'engine':'openai'}
    """
    status = 0
    asks = partial(check_captioner, config, configfile)
    all_checks: dict[str, Check] = {**CHECKS, "captioner": asks}
    for name, check in all_checks.items():
        for level, text in findings(check):
            if level == "warning":
                status = NOT_READY
            print(f"{level:7}  {name:9}  {for_terminal(text)}", flush=True)
    return status


def findings(check: Check) -> list[Finding]:
    """Return the results of a check. A check that fails itself is a warning."""
    try:
        return list(check())
    except Exception as error:  # the other checks are to run
        text = str(error) if isinstance(error, UserError) else first_line(error)
        return [("warning", text)]


def machine() -> Iterator[Finding]:
    """Report versions, the cores, and the main memory."""
    versions = f"latteclip {__version__}, Snakemake {version('snakemake')}"
    yield "ok", f"Python {platform.python_version()}, {versions}"
    total = psutil.virtual_memory().total / GIB
    level = "ok" if total >= MEMORY_WANTED else "warning"
    text = f"{devices.cores()} cores; {total:.0f} GiB of memory"
    yield level, f"{text}, the captioner and two jobs need {MEMORY_WANTED}"


def disk() -> Iterator[Finding]:
    """Report the free space for results, downloads and models."""
    folders = ("results", "resources", constants.HF_HOME)
    for place in dict.fromkeys(map(existing, folders)):
        free = shutil.disk_usage(place).free / GIB
        is_usable = free >= DISK_NEEDED and os.access(place, os.W_OK)
        level = "ok" if is_usable else "warning"
        text = f"{free:.0f} GiB free in {place}, where files must be written"
        yield level, f"{text}; a large dataset and LLaVA need 40"


def gpu() -> Iterator[Finding]:
    """Report the GPUs that NVIDIA's driver shows, without torch, and the compiler for Triton."""
    cards = devices.query("name,memory.total,driver_version,compute_cap")
    for name, megabytes, driver, capability in cards:
        yield "ok", f"{name}, {megabytes} MiB, driver {driver}"
        # An old driver has "[N/A]" there.
        if re.match(r"[1-7]\.", capability):
            yield (
                "note",
                f"{name} computes in fp16, not in bf16; set clip={{'precision': 'fp16'}} "
                "(vLLM takes fp16 by itself, unless captioner.dtype says otherwise)",
            )
    if not cards:
        text = "nvidia-smi is missing or shows no GPU; LLaVA would take days"
        yield "note", text
    elif sentence := devices.missing_compiler():
        yield "warning", sentence


def torch() -> Iterator[Finding]:
    """Report whether torch imports, and whether it sees the GPUs."""
    number, cuda, n_gpus = _import(TORCH)
    if not n_gpus:
        devices.refuse_unusable(number, cuda)
    build = f"CUDA {cuda}" if cuda else "CPU build"
    yield "ok", f"torch {number} ({build}), which sees {n_gpus} GPUs"


def vllm() -> Iterator[Finding]:
    """Report whether vLLM imports, and its device."""
    number, device = _import(VLLM)
    text = f"vLLM {number}, built for {device}"
    if device != "cuda" and devices.visible():
        remedy = "although there is a GPU; run make install KIND=cuda"
        yield "warning", f"{text}, {remedy}"
    else:
        yield "ok", text


def check_captioner(
    pairs: Sequence[str], files: Sequence[str]
) -> Iterator[Finding]:
    """Report whether the server of the first dataset's captioner takes the key."""
    from snakemake.cli import parse_config

    given = layers.merge(*map(layers.read, files), parse_config(pairs))
    dataset = Run(layers.defaults(), given).datasets[0]
    engine = dataset.captioner(IMAGES).engine
    if not dataset.answer_tables or engine.address is None:
        return
    url = os.environ.get(engine.address, "").rstrip("/")
    if not url:
        text = f"the captioner of {dataset.name} needs a server"
        yield "warning", f"{text}; export {engine.address}"
        return
    if not engine.writes_captions:
        url = decisions_address(url)
    key = os.environ.get(str(engine.key), "").strip()
    # Some servers have no such list. Those that ask for a key refuse a wrong one here as well.
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    reply = _get(f"{url}/models", "see that it runs", headers)
    text = f"{engine.address}, for {dataset.name}, answers with status {reply.status_code}"
    # Without /v1 some servers answer with a page, or with an error of status 200.
    is_list = _lists_models(reply)
    if not is_list and _lists_models(_get(f"{url}/v1/models", "", headers)):
        yield (
            "warning",
            f"{text} but lists no models; export {engine.address}={url}/v1",
        )
    elif reply.status_code in REFUSED:
        yield "warning", f"{text}; export a valid {engine.key}"
    else:
        yield "ok", text


def hub() -> Iterator[Finding]:
    """Report whether Hugging Face can be reached."""
    if constants.HF_HUB_OFFLINE:
        text = "HF_HUB_OFFLINE is set; models must be in the cache, or folders"
        yield "note", text
        return
    remedy = "set https_proxy or HF_ENDPOINT, or HF_HUB_OFFLINE=1 where models are in the cache"
    reply = _get(constants.ENDPOINT, remedy)
    yield "ok", f"{constants.ENDPOINT} answers ({reply.status_code})"


def _lists_models(reply: requests.Response) -> bool:
    """Return whether a server lists its models, or refuses to without a valid key."""
    content: Any = None
    with contextlib.suppress(ValueError):
        content = reply.json()
    is_list = isinstance(content, dict) and "data" in content
    return is_list or reply.status_code in REFUSED


def _get(
    address: str, remedy: str, headers: dict[str, str] | None = None
) -> requests.Response:
    """Return what a server answers, or raise UserError with the remedy."""
    try:
        return requests.get(
            address, headers=headers, timeout=HUB_TIMEOUT, allow_redirects=False
        )
    except requests.RequestException as error:
        raise UserError(
            f"{address} does not answer ({type(error).__name__}); {remedy}"
        ) from None


def _import(code: str) -> Any:
    """Return the JSON that code prints last in a new interpreter."""
    command = (sys.executable, "-c", f"import json{code}")
    lines = devices.output_of(
        *command, remedy="run make install again", timeout=IMPORT_TIMEOUT
    )
    return json.loads(lines[-1])


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (machine, disk, gpu, torch, vllm, hub)
}
