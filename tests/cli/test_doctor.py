import functools
import os
import shutil
import socket
import sys

import pytest
from support.nvidia import nvidia_smi

from latteclip.cli import doctor, main
from latteclip.core import gpus


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
    """Sets the checks that doctor runs, beside that of the captioner, which finds no GPU."""
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
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
    assert lines[0].startswith("warning ") and lines[1].startswith("ok ")
    assert len(lines) == 2


def test_notes_are_no_failure(only, capsys):
    only(one=lambda: iter([doctor.Finding("note", "text", "advice")]))
    assert main.main(["doctor"]) == 0
    assert "advice" in capsys.readouterr().out


@pytest.mark.parametrize(("free", "level"), [(1, "warning"), (10, "note"), (100, "ok")])
def test_little_space_is_a_note_or_a_warning(monkeypatch, tmp_path, free, level):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    usage = shutil._ntuple_diskusage(200 * 2**30, 0, free * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert [level for level, _ in found(doctor.disk)] == [level]


def test_a_broken_driver_is_a_warning(tools):
    tools("nvidia-smi", "echo 'Driver/library version mismatch' >&2; exit 18")
    assert found(doctor.gpu)[0][0] == "warning"


def printing(**values):
    return f"import json; print('noise'); print(json.dumps({values!r}))"


def test_a_torch_that_cannot_use_the_gpu_is_a_warning(tools, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi(tmp_path / "tools", {"GPU-0": []}, driver="535.1")
    monkeypatch.setattr(doctor, "TORCH", printing(version="2.9", cuda="13.0", cards=[]))
    assert [level for level, _ in found(doctor.torch)] == ["warning"]


def test_what_triton_compiles_with_counts_on_a_gpu(tools, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(gpus, "_python_headers", lambda: str(tmp_path))
    tools("nvidia-smi", "echo card")
    *_, (level, text) = found(doctor.gpu)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert (level, f"apt install gcc {python}-dev " in text) == ("warning", True)
    (tmp_path / "Python.h").touch()
    tools("clang", "exit 0")
    assert found(doctor.gpu) == [("ok", "card")]
    monkeypatch.setenv("CC", "no-such-compiler")  # which Triton takes as it is
    *_, (level, text) = found(doctor.gpu)
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
    assert level == "ok" and "4,096" in said
    monkeypatch.setattr(doctor, "CAPTIONER", printing(**values | {"memory": 16 * 2**30}))
    assert [level for level, _ in found(asks)] == ["warning"]
    monkeypatch.setattr(doctor, "CAPTIONER", "raise SystemExit('not cached')")
    assert [level for level, _ in found(asks)] == ["note"]


def test_an_import_that_dies_is_a_warning(tools, monkeypatch):
    monkeypatch.setattr(doctor, "VLLM", "import os; os.abort()")
    assert [level for level, _ in found(doctor.vllm)] == ["warning"]


def test_a_hub_that_does_not_answer(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", address)
    ((level, text),) = found(doctor.hub)
    assert level == "warning" and address in text


def test_a_cluster_without_snakemake_s_plugin_is_a_warning(tools, monkeypatch):
    tools("sbatch", "echo slurm 24.05.1")
    tools("sinfo", 'echo "cpu* up infinite (null)"')
    assert [level for level, _ in found(doctor.slurm)] == ["ok", "ok"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert found(doctor.slurm)[-1][0] == "warning"
