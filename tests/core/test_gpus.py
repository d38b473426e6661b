import functools
import os
import subprocess
import sys

import pytest
from support.tiny import ROOT

from latteclip.core import gpus
from latteclip.core.errors import UserError

CLAIM = """
import logging, sys
logging.basicConfig(level=logging.INFO)
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
    monkeypatch.delenv("LATTECLIP_GPUS", raising=False)
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

    def __init__(self, n=1, command=(sys.executable, "-c", CLAIM)):
        self.process = subprocess.Popen(
            [*command, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def has_to_wait(self):
        """Whether it says that it waits, before it says what it sees."""
        return "which other jobs use" in self.process.stderr.readline()

    @functools.cached_property
    def sees(self):
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.communicate("")


def test_jobs_side_by_side_see_gpus_of_their_own_and_leave_them_to_the_next(machine):
    machine(3)
    first = Job()
    assert first.sees == "GPU-0"
    second = Job(2)
    assert second.sees == "GPU-1,GPU-2"
    third = Job()
    assert third.has_to_wait
    first.end()
    assert third.sees == "GPU-0"
    second.end()
    third.end()


def test_jobs_take_turns_on_a_single_gpu_without_snakemake_s_help(machine):
    machine(1)
    first = Job()
    assert first.sees == "None"  # there is nothing to choose
    second = Job()
    assert second.has_to_wait
    first.end()
    assert second.sees == "None"
    second.end()


def test_a_job_that_waits_for_several_holds_none_meanwhile(machine):
    machine(2)
    first = Job()
    assert first.sees == "GPU-0"
    both = Job(2)
    assert both.has_to_wait
    third = Job()
    assert third.sees == "GPU-1"
    first.end()
    third.end()
    assert both.sees == "GPU-0,GPU-1"
    both.end()


def test_a_command_of_several_processes_gets_gpus_of_its_own(machine):
    machine(3)
    first = Job()
    assert first.sees == "GPU-0"
    claiming = (sys.executable, "-m", "latteclip.core.gpus")
    started = Job(2, command=(*claiming, "2", sys.executable, "-c", CLAIM))
    assert started.sees == "GPU-1,GPU-2"
    waiting = Job()
    assert waiting.has_to_wait
    started.end()
    assert waiting.sees == "GPU-1"
    first.end()
    waiting.end()


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
        with pytest.raises(UserError, match="3 GPUs are wanted, but this machine has 2"):
            gpus.claim(3)
    finally:
        while gpus._held:
            gpus._held.pop().close()
