"""The engine for servers against a real one."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
import torch
from support import warm
from support.captioning import changed
from support.commands import PROMPT, SETTINGS, read
from support.tiny import DEMO_LLAVA

from latteclip.captions import caption

SERVED_AS = "tiny"
SERVE = """
import runpy
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
"""


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory):
    """`vllm serve` of the demo's LLaVA; its address."""
    if torch.version.cuda:
        pytest.skip("the demo's LLaVA is served by the CPU build of vLLM")
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [
        *(warm.command("vllm"), SERVE),
        *("--model", DEMO_LLAVA),
        *("--host", "127.0.0.1", "--port", port, "--served-model-name", SERVED_AS),
        *("--dtype", "float32", "--max-model-len", "256", "--enforce-eager"),
    ]
    environment = {
        **os.environ,
        **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        **{"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"},
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        while True:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_vllm_server_writes_what_the_offline_engine_writes(
    index, answers, vllm_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", vllm_server)
    settings = changed(SETTINGS, engine="openai", model=SERVED_AS, batch_size=8)
    output = tmp_path / "captions.parquet"
    store = str(tmp_path / "store")
    caption.caption_images(index, None, PROMPT, settings, str(output), store, threads=1)
    assert read(output) == answers
