import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from support.commands import SETTINGS, N, command, read, run
from support.tiny import ROOT

from latteclip.captions.answer_cache import AnswerCache
from latteclip.captions.engines import vllm
from latteclip.captions.engines.vllm_output import explained
from latteclip.core import gpus, tables
from latteclip.core.errors import UserError

SPAWNING = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
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


def answered(store):
    """How many requests have an answer in the cache."""
    with AnswerCache(store, "1-of-0") as cache:
        return len(cache.snapshot().keys)


def wait_for_line(log, text, process):
    """Until the job's log has a line with a text."""
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_vllm_stopped_and_killed_on_its_way_writes_what_transformers_writes(
    index, answers, tmp_path
):
    settings = dataclasses.replace(SETTINGS, engine="vllm", batch_size=2)
    output, store, log = (tmp_path / name for name in ("captions.parquet", "store", "log"))
    arguments = command(index, settings, output, "--store", store, "--log", log)

    first = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for_line(log, " started in ", first)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate()
    assert first.returncode == 128 + signal.SIGTERM, errors
    assert "rerun to go on" in log.read_text()
    n = answered(store)

    log.unlink()
    second = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for_line(log, " started in ", second)
    second.kill()
    second.communicate()
    assert not output.exists()

    settings = dataclasses.replace(settings, batch_size=16)
    run(index, settings, output, "--store", store, "--log", log)
    assert read(output) == answers
    assert tables.read(output, tables.CAPTIONS)[1]["engine"].startswith("vllm ")
    text = log.read_text()
    assert f"Wrote {N} captions" in text
    asked = int(text.rpartition("Asked ")[2].split()[0])
    assert asked <= N - n


@pytest.mark.slow
def test_what_vllm_refuses_is_recorded_and_names_the_key(index, tmp_path):
    """By an engine in a process of its own, as on a GPU: it is spawned."""
    settings = dataclasses.replace(SETTINGS, engine="vllm", max_failed=1.0)
    run(index, settings, tmp_path / "captions.parquet", prompt="word " * 400, env=SPAWNING)
    errors = read(tmp_path / "captions.parquet")["error"]
    assert all("captioner.max_model_len" in error for error in errors)


def test_a_gpu_without_a_compiler_is_refused_before_vllm_is_imported(monkeypatch):
    monkeypatch.setattr(vllm, "_is_for_cpu", lambda: False)
    monkeypatch.setattr(gpus, "missing_compiler", lambda: "apt install gcc")
    with pytest.raises(UserError, match="apt install gcc"):
        vllm.VllmEngine(SETTINGS, 1, 1)


@pytest.mark.parametrize(
    ("error", "keys"),
    [
        (
            "Free memory on device (5.2/79.1 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.2 GiB).",
            ["gpu_memory_utilization"],
        ),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", ["batch_size", "quantization"]),
        (
            "The decoder prompt (length 3000) is longer than the maximum model length of 2048.",
            ["max_model_len", "max_image_side"],
        ),
        ("Model architectures ['X'] are not supported for now.", ["captioner.model"]),
        ("Failed to find C compiler. Please specify via CC environment variable", ["doctor"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_errors_of_vllm_name_the_keys_to_turn(error, keys):
    """Of this process, by pydantic's words; and of the engine's own process, by what it prints."""
    raised = ValueError(
        f"1 validation error for VllmConfig\n  Value error, {error} [type=value_error, input_value="
        "ArgsKwargs(...), input_type=ArgsKwargs]\n    For further information visit https://..."
    )
    place = "(EngineCore pid=21) ERROR 11-26 20:01:55 [core.py:1510]"
    printed = [
        "x.py:3: UserWarning: out of memory, quantization",
        f"{place} Traceback (most recent call last):",
        f'{place}     raise ValueError("max_model_len, quantization")',
        f"{place} ValueError: {error}",
        f"{place} Exception: WorkerProc initialization failed. See stack trace for root cause.",
    ]
    failed = RuntimeError("Engine core initialization failed. See root cause above.")
    for sentence in (explained(raised), explained(failed, printed).removeprefix("ValueError: ")):
        assert sentence.startswith(error.rstrip("."))
        assert "\n" not in sentence
        assert all(key in sentence for key in keys)


def test_an_engine_s_output_is_passed_on_and_its_last_lines_are_kept():
    """Also of a process that ends later, and of this one."""
    run = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["before", "['here', 'child', 'late']", "after"]
    assert run.stderr.splitlines() == ["here", "child", "late"]


@pytest.mark.slow
def test_why_an_engine_does_not_start_is_in_the_job_s_log(index, tmp_path):
    """By an engine in a process of its own, whose exception says no more than that it failed."""
    run = subprocess.run(
        [sys.executable, "-c", FAILURES, index, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **SPAWNING, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    assert run.returncode == 0, run.stderr
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
    field = (
        "2 validation errors for ModelConfig\ndtype\n  Input should be 'auto' [type=literal_error]"
    )
    assert explained(ValueError(field)) == "dtype: Input should be 'auto'"
    dead = RuntimeError("EngineCore encountered an issue. See stack trace (above).")
    assert explained(dead, ["main.c:9:10: fatal error: x.h: No such file"]).startswith("main.c")
    assert explained(dead, ["no error here"]).startswith("EngineCore encountered an issue")
