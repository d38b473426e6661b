import contextlib
import functools
import os
import subprocess
import sys

import pytest
from support.nvidia import broken_nvidia_smi, nvidia_smi
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
    monkeypatch.delenv("LATTECLIP_GPUS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda n, **more: nvidia_smi(
        tmp_path, {f"GPU-{i}": [] for i in range(n)}, **more
    )


class Job(subprocess.Popen):
    """A process that claims GPUs and holds them until it is ended."""

    def __init__(self, n=1):
        pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
        super().__init__([sys.executable, "-c", CLAIM, str(n)], text=True, **pipes)

    @property
    def has_to_wait(self):
        """Whether it says that it waits, before it says what it sees."""
        return "which other jobs use" in self.stderr.readline()

    @functools.cached_property
    def sees(self):
        return self.stdout.readline().strip()


@pytest.fixture
def job():
    """Starts a Job, which ends with the test at the latest."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Job(*args, **options))


def test_jobs_side_by_side_see_gpus_of_their_own_and_leave_them_to_the_next(machine, job):
    machine(3)
    first = job()
    assert first.sees == "GPU-0"
    second = job(2)
    assert second.sees == "GPU-1,GPU-2"
    third = job()
    assert third.has_to_wait
    second.communicate("")
    assert third.sees == "GPU-1"


def test_a_job_that_waits_for_several_holds_none_meanwhile(machine, job):
    machine(2)
    first = job()
    assert first.sees == "GPU-0"
    both = job(2)
    assert both.has_to_wait
    third = job()
    assert third.sees == "GPU-1"
    first.communicate("")
    third.communicate("")
    assert both.sees == "GPU-0,GPU-1"


def test_what_this_job_has_claimed_stays(machine, job, monkeypatch):
    machine(2)
    first = job()
    assert first.sees == "GPU-0"
    monkeypatch.setenv("LATTECLIP_GPUS", "shared")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    second = job()
    assert second.sees == "GPU-0"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("3, 2", ["3", "2"]),
        ("MIG-4b,MIG-4a,MIG-GPU-9/1/0", ["MIG-4b", "MIG-4a", "MIG-GPU-9/1/0"]),
        ("1,-1,2", ["1"]),  # CUDA sees nothing behind a name that is none
    ],
)
def test_jobs_share_out_the_gpus_that_a_run_may_use(
    machine, job, tmp_path, monkeypatch, given, taken
):
    parts = {"GPU-4": ["MIG-4a", "MIG-4b"], "GPU-9": ["MIG-GPU-9/1/0"]}
    nvidia_smi(tmp_path, {f"GPU-{i}": [] for i in range(4)} | parts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    jobs = []
    for name in taken:
        jobs.append(job())
        assert jobs[-1].sees == name
    waiting = job()
    assert waiting.has_to_wait
    jobs[0].communicate("")
    assert waiting.sees == taken[0]


def test_a_gpu_is_one_whatever_it_is_called(machine, job, monkeypatch):
    machine(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    by_number = job()
    assert by_number.sees == "1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    of_all = job(2)
    assert of_all.sees == "GPU-0,GPU-2"


@pytest.mark.parametrize(
    ("visible", "is_mistaken"),
    [
        ("MIG-0a", False),  # what vLLM takes for GPU 0 is part of GPU 0
        ("MIG-0b", True),
        ("MIG-1a", True),
        ("MIG-1b", False),
        ("MIG-1c", True),  # there is no GPU 2
        ("MIG-0a,MIG-1a", True),
        ("0,1", False),
        (None, False),
    ],
)
def test_the_number_of_a_part_of_a_gpu_is_not_taken_for_that_of_a_gpu(
    machine, monkeypatch, tmp_path, visible, is_mistaken
):
    parts = {"GPU-0": ["MIG-0a", "MIG-0b"], "GPU-1": ["MIG-1a", "MIG-1b", "MIG-1c"]}
    nvidia_smi(tmp_path, parts)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sentence = gpus.mistaken_part()
    assert (sentence is not None) == is_mistaken
    if sentence:
        assert "captioner.engine" in sentence


def test_more_gpus_than_there_are_is_one_sentence(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=1"):
        gpus.claim(2)


@pytest.mark.parametrize(
    ("visible", "expected", "free"), [(None, "GPU-2", 2), ("0,3,1", "1", 1)]
)
def test_the_emptiest_card_comes_first_and_the_log_names_it(
    machine, job, monkeypatch, visible, expected, free
):
    machine(4, memory=[70_000, 15, 3, 4_000])
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    first = job()
    assert first.sees == expected
    assert "MiB in use" in first.stderr.readline()
    assert gpus.free() == free


def test_a_driver_that_does_not_answer_is_an_error_unless_the_cpu_is_asked_for(
    machine, monkeypatch, tmp_path
):
    broken_nvidia_smi(tmp_path)
    for ask in (gpus.claim, gpus.free, lambda: gpus.refuse_unusable("2.14.0", "13.0")):
        with pytest.raises(UserError, match="export CUDA_VISIBLE_DEVICES="):
            ask()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        gpus.claim()
        assert (gpus.free(), os.environ["CUDA_VISIBLE_DEVICES"]) == (0, hidden)


@pytest.mark.parametrize(
    ("driver", "capability", "cuda", "message"),
    [
        ("535.183.01", "8.0", "13.0", r"535\.183\.01.*cuda-compat-13"),
        ("580.65.06", "8.0", None, "KIND=cuda"),
        ("580.65.06", "7.0", "13.0", r"7\.0"),  # a V100
    ],
)
def test_a_build_that_cannot_use_the_gpu_is_one_sentence(
    machine, monkeypatch, driver, capability, cuda, message
):
    machine(1, driver=driver, capability=capability)
    with pytest.raises(UserError, match=message):
        gpus.refuse_unusable("2.14.0", cuda)
    machine(1, driver="580.65.06", capability="7.5")
    gpus.refuse_unusable("2.14.0", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus.refuse_unusable("2.14.0", cuda, sees_none=True)
