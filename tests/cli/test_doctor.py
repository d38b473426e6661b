import functools
import os
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from support.nvidia import nvidia_smi

from latteclip.cli import doctor, main
from latteclip.core import build_tools


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """An otherwise empty PATH, and a function that puts a shell script into it."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    shell = shutil.which("sh", path=os.defpath)

    def make(name, script):
        path = folder / name
        path.write_text(f"#!{shell}\n{script}\n")
        path.chmod(0o755)

    return make


@pytest.fixture
def only(monkeypatch):
    """Sets the checks that doctor runs."""
    return lambda **checks: monkeypatch.setattr(doctor, "CHECKS", checks)


def found(check):
    return [(finding.level, finding.text) for finding in doctor.findings(check)]


def test_a_broken_check_hides_no_other(only, capsys):
    def broken():
        yield doctor.Finding("ok", "begun")
        raise OSError("gone")

    only(first=broken, second=doctor.python)
    assert main.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning  first      could not be checked (OSError: gone)")
    assert lines[1].startswith("ok       second     Python 3.")
    assert len(lines) == 2


@pytest.mark.parametrize(("level", "expected"), [("ok", 0), ("note", 0), ("warning", 1)])
def test_the_exit_status_is_that_of_warnings(only, level, expected, capsys):
    only(one=lambda: iter([doctor.Finding(level, "said", "done about it")]))
    assert main.main(["doctor"]) == expected
    assert capsys.readouterr().out == f"{level:7}  one        said; done about it\n"


def test_cpu_memory_and_disk_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    ((_, text),) = found(doctor.cpu)
    assert text.startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores")
    ((_, text),) = found(doctor.memory)
    assert "GiB" in text
    ((_, text),) = found(doctor.disk)  # one device, one line
    assert f"free for results, resources, models ({tmp_path})" in text


@pytest.mark.parametrize(("free", "level"), [(1, "warning"), (10, "note"), (100, "ok")])
def test_little_room_is_told(monkeypatch, tmp_path, free, level):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    usage = shutil._ntuple_diskusage(200 * 2**30, 0, free * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    ((found_level, text),) = found(doctor.disk)
    assert found_level == level
    assert text.startswith(f"{free} GiB free")


def test_no_gpu_is_a_note(tools):
    ((level, text),) = found(doctor.gpu)
    assert (level, "no NVIDIA GPU" in text) == ("note", True)


def test_a_gpu_is_named(tools):
    tools("nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 560.1'")
    assert found(doctor.gpu) == [("ok", "NVIDIA H100, 81559 MiB, 560.1")]


def test_a_broken_driver_is_a_warning(tools):
    tools("nvidia-smi", "echo 'Driver/library version mismatch' >&2; exit 18")
    assert found(doctor.gpu) == [("warning", "nvidia-smi fails: Driver/library version mismatch")]


def printing(**values):
    return f"import json; print('noise'); print(json.dumps({values!r}))"


CARD = {"name": "T4", "memory": 16 * 2**30, "bf16": False}


def test_torch_and_its_cards(tools, monkeypatch):
    monkeypatch.setattr(doctor, "TORCH", printing(version="2.9", cuda="12.8", cards=[CARD]))
    assert found(doctor.torch) == [("ok", "torch 2.9 (CUDA 12.8)"), ("note", "T4, 16 GiB, no bf16")]


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, "torch 2.9 is a build for the CPU, but the NVIDIA driver 535.1 shows a GPU; run"),
        ("13.0", "torch 2.9 was built for CUDA 13.0, which needs driver 580 or newer, and cannot"),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_a_warning(tools, tmp_path, monkeypatch, cuda, said):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi(tmp_path / "tools", {"GPU-0": []}, driver="535.1")
    monkeypatch.setattr(doctor, "TORCH", printing(version="2.9", cuda=cuda, cards=[]))
    ((level, text),) = found(doctor.torch)
    assert level == "warning"
    assert text.startswith(said)


def test_what_triton_compiles_with_counts_on_a_gpu(tools, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build_tools, "_headers", lambda: str(tmp_path))
    assert found(doctor.compiler) == []
    tools("nvidia-smi", "exit 0")
    ((level, text),) = found(doctor.compiler)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert (level, f"apt install gcc {python}-dev " in text) == ("warning", True)
    (tmp_path / "Python.h").touch()
    tools("clang", "exit 0")
    assert [level for level, _ in found(doctor.compiler)] == ["ok"]
    monkeypatch.setenv("CC", "no-such-compiler")  # which Triton takes as it is
    ((level, text),) = found(doctor.compiler)
    assert (level, "no-such-compiler" in text) == ("warning", True)


def test_whether_a_captioner_fits_is_known_before_it_is_loaded(tools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asks = functools.partial(doctor.captioner, ["dataset=dtd", "captioner={'batch_size': 3}"], [])
    assert found(asks) == []
    tools("nvidia-smi", "exit 0")
    text = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    config = {**text, "vocab_size": 32000, "intermediate_size": 11008}
    values = {"config": config, "weights": 14 * 2**30, "memory": 80 * 2**30}
    monkeypatch.setattr(doctor, "CAPTIONER", printing(**values))
    ((level, said),) = found(asks)
    assert (level, "weights 14.0 and cache " in said) == ("ok", True)
    assert "3 requests of 4,096 tokens at once" in said
    monkeypatch.setattr(doctor, "CAPTIONER", printing(**values | {"memory": 16 * 2**30}))
    assert [level for level, _ in found(asks)] == ["warning"]
    monkeypatch.setattr(doctor, "CAPTIONER", "raise SystemExit('not cached')")
    assert [level for level, _ in found(asks)] == ["note"]


def test_a_vllm_for_the_cpu_beside_a_gpu_is_a_warning(tools, monkeypatch):
    tools("nvidia-smi", "exit 0")
    monkeypatch.setattr(doctor, "VLLM", printing(version="0.11", device="cpu"))
    ((level, text),) = found(doctor.vllm)
    assert (level, text) == ("warning", "vLLM 0.11 is built for cpu, though a GPU is there")


@pytest.mark.parametrize("code", ["import no_such_module", "import os; os.abort()"])
def test_an_import_that_fails_or_dies_is_a_warning(tools, monkeypatch, code):
    monkeypatch.setattr(doctor, "TORCH", code)
    monkeypatch.setattr(doctor, "VLLM", code)
    for check in (doctor.torch, doctor.vllm):
        ((level, text),) = found(check)
        assert level == "warning"
        assert "does not import: " in text
        assert "Traceback" not in text


def test_torch_of_this_environment():
    import torch

    assert found(doctor.torch)[0][1].startswith(f"torch {torch.__version__} (")


@pytest.mark.slow
def test_vllm_of_this_environment():
    ((level, text),) = found(doctor.vllm)
    assert level == "ok"
    assert text.startswith("vLLM ")


# --- hub access ----------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A server that answers with a status; it is the hub."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [200, 403])
def test_a_hub_that_answers(hub, status):
    hub.status = status
    address = os.environ["HF_ENDPOINT"]
    assert found(doctor.hub) == [("ok", f"{address} answers ({status})")]


def test_a_hub_that_does_not_answer(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", address)
    ((level, text),) = found(doctor.hub)
    assert level == "warning"
    assert text.startswith(f"{address} does not answer (")


def test_a_hub_that_nobody_wants(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor.urllib.request, "urlopen", lambda *_, **__: sys.exit("asked"))
    assert found(doctor.hub) == [("note", "HF_HUB_OFFLINE is set")]


# --- SLURM ---------------------------------------------------------------------------------------


def test_a_cluster_without_snakemake_s_plugin_is_a_warning(tools, monkeypatch):
    tools("sbatch", "echo slurm 24.05.1")
    tools("sinfo", 'echo "cpu* up infinite (null)"')
    assert [level for level, _ in found(doctor.slurm)] == ["ok", "ok"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert found(doctor.slurm)[-1] == ("warning", "Snakemake lacks its plugin for SLURM")


def test_no_slurm_is_a_note(tools):
    assert found(doctor.slurm) == [("note", "no SLURM (sbatch is not there)")]


def test_partitions_of_a_cluster(tools):
    tools("sbatch", "echo slurm 24.05.1")
    tools("sinfo", "echo 'gpu* up 1-00:00:00 gpu:a100:4'; echo 'cpu up infinite (null)'")
    assert [text for _, text in found(doctor.slurm)] == [
        "slurm 24.05.1",
        "partition gpu*: up, at most 1-00:00:00, devices gpu:a100:4",
        "partition cpu: up, at most infinite, devices (null)",
    ]


def test_a_cluster_that_does_not_answer_is_a_warning(tools, monkeypatch):
    tools("sbatch", "echo slurm 24.05.1")
    tools("sinfo", "exec sleep 30")
    monkeypatch.setenv("PATH", os.environ["PATH"] + os.pathsep + os.defpath)
    monkeypatch.setattr(doctor, "TOOL_TIMEOUT", 0.5)
    assert found(doctor.slurm) == [
        ("warning", "slurm 24.05.1, but sinfo fails: no answer in 0.5 s")
    ]
