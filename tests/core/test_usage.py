import json
import os
import subprocess
import sys

import pytest
from support.nvidia import nvidia_smi
from support.tiny import ROOT

from latteclip.core import usage

# Burns a given number of CPU seconds, which the system counts itself.
BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def run(code, **environment):
    """The exit status of a new interpreter that ran `code`."""
    inherited = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    given = {**inherited, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=given, check=False).returncode


def recording(log, body):
    """Code whose `body` is recorded beside a log."""
    lines = [f"    {line}" for line in body.splitlines()]
    head = ["from latteclip.core import usage", f"with usage.recorded('finetune', {str(log)!r}):"]
    return "\n".join([*head, *lines])


def lines_beside(log):
    return [json.loads(line) for line in log.with_suffix(usage.SUFFIX).read_text().splitlines()]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "finetune.log"


CHILD = "import subprocess, sys\nchild = [sys.executable, '-c', {code!r}]\n"
WAYS = {
    "itself": BURN.format(seconds=0.6),
    "child that ended": CHILD.format(code=BURN.format(seconds=0.6)) + "subprocess.run(child)",
    "child that lives": CHILD.format(code=BURN.format(seconds=0.6) + "print(flush=True)\ninput()")
    + "one = subprocess.Popen(child, stdin=-1, stdout=-1)\none.stdout.readline()",
}


@pytest.mark.parametrize("way", WAYS)
def test_processor_time_is_that_of_a_process_and_its_children(log, way):
    assert run(recording(log, WAYS[way])) == 0
    assert run(recording(log, "pass")) == 0
    worked, idle = lines_beside(log)
    assert worked["cpu_seconds"] >= 0.6 > idle["cpu_seconds"]


def test_memory_is_that_of_the_largest_process_at_its_most(log):
    grown = "x = b'x' * 200 * 2**20\ndel x"
    assert run(recording(log, grown)) == 0
    assert run(recording(log, CHILD.format(code=grown) + "subprocess.run(child)")) == 0
    assert run(recording(log, "pass")) == 0
    *grown_ones, idle = (line["memory"] for line in lines_beside(log))
    assert min(grown_ones) > 200 + idle / 2


ENDS = {
    "fails": "raise ValueError",
    "is told to end": "import os, signal\nfrom latteclip.core.signals import ending_in_order\n"
    "with ending_in_order('Nothing.'): os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_does_not_come_to_its_end_is_counted(log, end):
    assert run(recording(log, f"usage.count('tokens_written', 3)\n{ENDS[end]}")) != 0
    [line] = lines_beside(log)
    assert (line["done"], line["tokens_written"]) == (False, 3)


def test_a_claimed_gpu_is_held_from_then_on(log, tmp_path):
    nvidia_smi(tmp_path, {f"GPU-{i}": [] for i in range(2)})
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    body = "from latteclip.core import gpus\ngpus.claim({n})\nimport time\ntime.sleep(0.2)"
    for n in (1, 2):
        assert run(recording(log, body.format(n=n)), PATH=path, TMPDIR=str(tmp_path)) == 0
    assert run(recording(log, "pass"), PATH=path) == 0
    one, two, none = lines_beside(log)
    assert 0.2 <= one["gpu_seconds"] <= one["seconds"]
    assert 0.4 <= two["gpu_seconds"] <= 2 * two["seconds"]
    assert none["gpu_seconds"] == 0


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    with usage.recorded("finetune", tmp_path / "nowhere" / "finetune.log"):
        pass
    assert "was not written down (No such file or directory)" in caplog.text


def line(stage="finetune", started="2026-01-01T00:00:00+00:00", **values):
    usual = {"seconds": 2.0, "cpu_seconds": 3.0, "gpu_seconds": 1.0, "memory": 10.0}
    tokens = {"tokens_read": 5, "tokens_written": 7}
    return json.dumps({"stage": stage, "started": started, "rank": 0, **usual, **tokens, **values})


def test_runs_of_a_stage_are_added_up_and_broken_lines_passed_over(tmp_path):
    first, second = tmp_path / "a.used.jsonl", tmp_path / "b.used.jsonl"
    ranks = [line(), line(rank=1, seconds=2.5, memory=20.0)]
    first.write_text("\n".join([*ranks, line(memory="?"), "[]", line()[:20], ""]))
    second.write_text(line(started="2026-01-02") + "\n" + line("index_images", "2025-01-01") + "\n")
    found = usage.by_stage([first, second, tmp_path / "missing"])
    assert list(found) == ["index_images", "finetune"]
    assert found["finetune"] == usage.Used(2, 4.0, 9.0, 3.0, 20.0, 15, 21)
    assert usage.total(found.values()) == usage.Used(3, 6.0, 12.0, 4.0, 20.0, 20, 28)
