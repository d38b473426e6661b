import dataclasses
import signal
import subprocess
import time
from typing import Annotated

import pydantic
import pytest
from support.commands import SETTINGS, N, command, python, read, run

from latteclip.captions.answer_cache import AnswerCache
from latteclip.captions.engines import vllm
from latteclip.captions.engines.vllm_output import explained
from latteclip.core import gpus, tables
from latteclip.core.errors import UserError

# What an engine's processes print: one ends in the body, one is still there after it.
LATER = """
import subprocess, sys
from latteclip.captions.engines.vllm_output import EngineOutput
print("before")
output = EngineOutput()
with output.collected():
    print("here", flush=True)
    subprocess.run([sys.executable, "-c", "print('child')"])
    code = "import sys; sys.stdin.read(); print('late', file=sys.stderr)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
child.communicate(b"")
print(output.lines())
print("after")
"""
# Three commands, one after the other in a process: its import of vLLM takes the longest.
FAILURES = """
import dataclasses, json, shutil, sys
from pathlib import Path
from support.commands import SETTINGS, command
from latteclip.cli import main

if __name__ == "__main__":
    index, folder = sys.argv[1], Path(sys.argv[2])
    for name in ("long", "unknown", "damaged"):
        model = shutil.copytree(SETTINGS.model, folder / name)
        settings = dataclasses.replace(SETTINGS, engine="vllm", model=str(model))
        if name == "long":
            settings = dataclasses.replace(settings, max_model_len=9999)
        elif name == "unknown":
            config = json.loads((model / "config.json").read_bytes())
            config["architectures"] = ["NoSuchModel"]
            (model / "config.json").write_text(json.dumps(config))
        else:
            weights = model / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1000])
        log = folder / f"{name}.log"
        arguments = command(index, settings, folder / "captions.parquet", "--log", log)
        assert main.main(arguments[1:]) == 2
"""


@pytest.mark.slow
def test_vllm_stopped_on_its_way_writes_what_transformers_writes(index, answers, tmp_path):
    settings = dataclasses.replace(SETTINGS, engine="vllm", batch_size=2)
    output, store, log = (tmp_path / name for name in ("captions.parquet", "store", "log"))
    options = ("--store", store, "--log", log)

    arguments = command(index, settings, output, *options)
    first = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and " started in " in log.read_text()):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate()
    assert first.returncode == 128 + signal.SIGTERM, errors
    assert not output.exists()
    with AnswerCache(store, "1-of-0") as cache:
        n = len(cache.snapshot().keys)

    run(index, dataclasses.replace(settings, batch_size=16), output, *options)
    assert read(output) == answers
    assert tables.read(output, tables.CAPTIONS)[1]["engine"].startswith("vllm ")
    asked = int(log.read_text().rpartition("Asked ")[2].split()[0])
    assert asked <= N - n


def test_a_gpu_without_a_compiler_is_refused_before_vllm_is_imported(monkeypatch):
    monkeypatch.setattr(vllm, "_is_for_cpu", lambda: False)
    monkeypatch.setattr(gpus, "missing_compiler", lambda: "apt install gcc")
    with pytest.raises(UserError, match="apt install gcc"):
        vllm.VllmEngine(SETTINGS, 1, 1)


@pytest.mark.parametrize(
    ("error", "key"),
    [
        ("Free memory on device is less than desired GPU memory utilization.", "gpu_memory_util"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "batch_size"),
        ("The prompt (length 3000) is longer than the maximum model length.", "max_model_len"),
        ("Model architectures ['X'] are not supported for now.", r"captioner.model"),
        ("Failed to find C compiler. Please specify via CC environment variable", "doctor"),
    ],
)
def test_errors_of_vllm_name_the_key_to_turn(error, key):
    """Of this process, by pydantic's words; and of the engine's own process, by what it prints."""

    def refuse(_):
        raise ValueError(error)

    config = pydantic.create_model("VllmConfig", x=Annotated[int, pydantic.AfterValidator(refuse)])
    with pytest.raises(pydantic.ValidationError) as raised:
        config(x=1)
    place = "(EngineCore pid=21) ERROR 11-26 20:01:55 [core.py:1510]"
    printed = [
        "x.py:3: UserWarning: out of memory, quantization",
        f"{place} Traceback (most recent call last):",
        f'{place}     raise ValueError("max_model_len, quantization")',
        f"{place} ValueError: {error}",
        f"{place} Exception: WorkerProc initialization failed. See stack trace for root cause.",
    ]
    failed = RuntimeError("Engine core initialization failed. See root cause above.")
    for found in (explained(raised.value), explained(failed, printed)):
        sentence = found.removeprefix("x: ").removeprefix("ValueError: ")
        assert sentence.startswith(error.rstrip("."))
        assert key in sentence


def test_an_engine_s_output_is_passed_on_and_its_last_lines_are_kept():
    """Also of a process that ends later, and of this one."""
    run = python(LATER)
    assert run.stdout.splitlines() == ["before", "['here', 'child', 'late']", "after"]
    assert run.stderr.splitlines() == ["here", "child", "late"]


@pytest.mark.slow
def test_why_an_engine_does_not_start_is_in_the_job_s_log(index, tmp_path):
    """By an engine in a process of its own, whose exception says no more than that it failed."""
    run = python(FAILURES, index, tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    reasons = {name: log.splitlines()[-1] for name, log in logs.items()}
    assert set(reasons) == {"long", "unknown", "damaged"}
    assert "(9999) is greater than" in reasons["long"]
    assert "captioner.max_model_len" in reasons["long"]
    assert "['NoSuchModel'] are not supported" in reasons["unknown"]
    assert "captioner.engine to transformers" in reasons["unknown"]
    assert "SafetensorError: " in reasons["damaged"]
    assert "fetch the model again" in reasons["damaged"]
    traceback = "Traceback (most recent call last)"  # of the engine, passed on once
    assert logs["damaged"].count(traceback) == run.stderr.count(traceback) > 0


def test_an_error_that_nobody_knows_is_its_first_line():
    assert explained(RuntimeError("something\nelse")) == "something"
    assert explained(RuntimeError()) == "RuntimeError()"
    dead = RuntimeError("EngineCore encountered an issue. See stack trace (above).")
    assert explained(dead, ["main.c:9:10: fatal error: x.h: No such file"]).startswith("main.c")
    assert explained(dead, ["no error here"]).startswith("EngineCore encountered an issue")
