"""How vLLM is started: what the process of the engine has done, and not done, until then."""

import dataclasses
import json
import os
import subprocess
import sys

from support.commands import SETTINGS

# The machine of the tests has no CUDA. A card is stood in for by an `nvidia-smi`, and all functions
# of torch.cuda by ones that remember that they were called; vLLM is real but for its class LLM.
START = """
import importlib, json, os, sys, types
import torch

torch.version.cuda = "13.0"  # of a build that the driver below can be used with
called, at_import = [], {}

def remembers(name):
    def function(*arguments, **options):
        called.append(name)
        return False
    return function

for name, value in list(vars(torch.cuda).items()):
    own = isinstance(value, types.FunctionType) and value.__module__ == "torch.cuda"
    if own and name != "_is_compiled":  # which asks the build alone
        setattr(torch.cuda, name, remembers(name))
for name in ("_cuda_init", "_cuda_getDeviceCount", "_cuda_isInBadFork"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, remembers(name))

def when_imported(event, arguments):
    if event == "import" and arguments[0] == "vllm":
        at_import.setdefault("method", os.environ.get("VLLM_WORKER_MULTIPROC_METHOD"))

sys.addaudithook(when_imported)

class Made(Exception):
    pass

def made(**options):
    raise Made(json.dumps({
        "at_import": at_import["method"],
        "when_made": os.environ["VLLM_WORKER_MULTIPROC_METHOD"],
        "claimed": os.environ.get("LATTECLIP_GPUS"),
        "sampler": os.environ["VLLM_USE_FLASHINFER_SAMPLER"],
        "formats": [options[f"{kind}_format"] for kind in ("config", "load")],
        "limits": options["limit_mm_per_prompt"],
        "called": called,
    }))

sys.modules["vllm.entrypoints.llm"] = types.SimpleNamespace(LLM=made)
from latteclip.captions import requests
from latteclip.captions.engines import base as engines, processors
from latteclip.captions.engines.base import CaptionerSettings

settings = CaptionerSettings(**json.loads(sys.argv[1]))
requests.special_tokens(settings.model, settings.revision)
processors.load(settings)
try:
    engines.start(settings, 1, 4)
except Made as found:
    print(found)
"""


def test_workers_are_spawned_from_a_process_that_has_not_touched_cuda(tmp_path):
    answers = 'case $1 in --list-gpus) echo "GPU 0: H100 (UUID: GPU-1)";; *) echo 580.1;; esac'
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answers}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    settings = dataclasses.replace(SETTINGS, engine="vllm")
    names = {"VLLM_WORKER_MULTIPROC_METHOD", "VLLM_USE_FLASHINFER_SAMPLER"}
    names |= {"CUDA_VISIBLE_DEVICES", "LATTECLIP_GPUS", "LOCAL_RANK"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    run = subprocess.run(
        [sys.executable, "-c", START, json.dumps(dataclasses.asdict(settings))],
        capture_output=True,
        text=True,
        env={**environment, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {
        "at_import": "spawn",
        "when_made": "spawn",
        "claimed": "GPU-1",
        "sampler": "0",
        "formats": ["hf", "safetensors"],
        "limits": {"image": 4, "video": 0, "audio": 0},
        "called": [],
    }
