import os
import subprocess
import sys

import pytest
from support.tiny import ROOT

from latteclip.core import gpus
from latteclip.core.errors import UserError

CLAIM = """
import sys, time
from latteclip.core import gpus
gpus.claim(int(sys.argv[1]))
import os
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose nvidia-smi lists so many GPUs; its locks are the test's own."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def machine(n):
        script = tmp_path / "nvidia-smi"
        script.write_text("#!/bin/sh\n" + "".join(f"echo GPU-{i}\n" for i in range(n)))
        script.chmod(0o755)

    return machine


class Job:
    """A process that claims GPUs and holds them until it is ended."""

    def __init__(self, n=1):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.sees = self.process.stdout.readline().strip()

    def end(self):
        return self.process.communicate("")[1]


def test_jobs_side_by_side_see_gpus_of_their_own_and_leave_them_to_the_next(machine):
    machine(3)
    first, second = Job(), Job(2)
    assert [first.sees, second.sees] == ["GPU-0", "GPU-1,GPU-2"]
    assert "wanted, but other jobs have taken all but 0" in Job().end()
    first.end()
    third = Job()
    assert third.sees == "GPU-0"
    second.end()
    third.end()


@pytest.mark.parametrize("n", [0, 1])
def test_without_several_gpus_nothing_is_chosen(machine, n):
    machine(n)
    job = Job()
    assert job.sees == "None"
    job.end()


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "LOCAL_RANK"])
def test_what_a_scheduler_or_torchrun_chose_stays(machine, monkeypatch, variable):
    machine(2)
    monkeypatch.setenv(variable, "1")
    job = Job()
    assert job.sees == os.environ.get("CUDA_VISIBLE_DEVICES", "None")
    job.end()


def test_more_gpus_than_there_are_is_one_sentence(machine):
    machine(2)
    try:
        with pytest.raises(UserError, match="3 of the 2 GPUs are wanted"):
            gpus.claim(3)
    finally:
        while gpus._held:
            gpus._held.pop().close()
