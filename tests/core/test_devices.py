import contextlib
import functools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from support.processes import broken_nvidia_smi, nvidia_smi
from support.tiny import ROOT

from latteclip.clip.model import Clip
from latteclip.config import layers
from latteclip.config.resolve import Run
from latteclip.core import devices
from latteclip.core.errors import UserError

CLAIM = """
import logging, os, sys
logging.basicConfig(level=logging.INFO)
from latteclip.core import devices
devices.claim(int(sys.argv[1]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
print(os.environ.get("CUDA_DEVICE_ORDER"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose nvidia-smi lists so many GPUs; its locks are the test's own."""
    for name in ("CUDA_VISIBLE_DEVICES", "LATTECLIP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda n, **more: nvidia_smi(tmp_path, [f"GPU-{i}" for i in range(n)], **more)


class Job(subprocess.Popen):
    """A process that claims GPUs and holds them until it is ended."""

    def __init__(self, n=1):
        pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
        super().__init__([sys.executable, "-c", CLAIM, str(n)], text=True, **pipes)

    @property
    def has_to_wait(self):
        """Whether it says that it waits, before it says what it sees."""
        return "other jobs use" in self.stderr.readline()

    @functools.cached_property
    def sees(self):
        return self.stdout.readline().strip()


@pytest.fixture
def job():
    """Starts a Job, which ends with the test at the latest."""
    with contextlib.ExitStack() as stack:
        yield lambda n=1: stack.enter_context(Job(n))


@pytest.mark.parametrize(
    ("given", "sizes", "seen", "last"),
    [
        (None, (1, 2), ["GPU-0", "GPU-1,GPU-2"], "GPU-1"),
        ("MIG-4b,GPU-1", (1, 1), ["MIG-4b", "GPU-1"], "GPU-1"),
    ],
)
def test_jobs_side_by_side_share_out_the_gpus_and_leave_them_to_the_next(
    machine, job, monkeypatch, given, sizes, seen, last
):
    machine(3)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    jobs = []
    for size, wanted in zip(sizes, seen, strict=True):
        jobs.append(job(size))
        assert jobs[-1].sees == wanted
    waiting = job()
    assert waiting.has_to_wait
    jobs[-1].communicate("")
    assert waiting.sees == last


@pytest.mark.parametrize("given", ["GPU-1", "1"])
def test_a_card_has_one_lock_by_any_name_and_the_number_of_nvidia_smi(
    tmp_path, machine, job, monkeypatch, given
):
    nvidia_smi(tmp_path, ["GPU-0e4f", "GPU-1a2b"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    first = job()
    assert first.sees == {"GPU-1": "GPU-1a2b"}.get(given, given)
    assert first.stdout.readline().strip() == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a2b")
    assert job().has_to_wait
    first.communicate("")


def test_more_gpus_than_there_are_is_one_sentence(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=1"):
        devices.claim(2)


def test_the_emptiest_card_comes_first_and_the_log_names_it(machine, job, monkeypatch):
    machine(4, memory=[70_000, 15, 3, 4_000])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,1")
    first = job()
    assert first.sees == "1"
    assert "uses GPU-1" in first.stderr.readline()


def test_a_driver_that_does_not_answer_is_an_error_unless_the_cpu_is_asked_for(
    machine, monkeypatch, tmp_path
):
    broken_nvidia_smi(tmp_path)
    refuse = partial(devices.refuse_unusable, "2.14.0", None)
    for ask in (devices.claim, refuse):
        with pytest.raises(UserError, match="export CUDA_VISIBLE_DEVICES="):
            ask()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        devices.claim()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == hidden


def test_a_card_without_bfloat16_is_told_what_to_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    of = partial(Clip, torch.nn.Linear(1, 1), None, None, {}, torch.device("cuda"))
    with pytest.raises(UserError, match=r"clip\.precision .*Tesla T4"):
        of("bf16")
    demo = Run(layers.defaults(project=None), {"dataset": "demo"}).datasets[0]
    for precision in ("fp16", demo.keys.clip.precision):
        assert of(precision).precision == precision


def test_a_gpu_that_torch_cannot_use_is_no_silent_run_on_the_cpu(
    machine, monkeypatch, caplog
):
    machine(1)
    monkeypatch.setenv("LATTECLIP_GPUS", "shared")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for wanted in ("auto", "cuda"):
        with pytest.raises(UserError, match="NVIDIA driver"):
            devices.pick(wanted, 1)
    assert devices.pick("cpu", 1) == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    caplog.clear()
    assert devices.pick("auto", 1) == torch.device("cpu")
    assert "CPU" in caplog.text


def test_the_tests_see_no_gpu_of_their_machine(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, ["GPU-0"])
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert devices.visible() == {}


def test_float32_on_a_gpu_rounds_no_convolution(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert devices.pick("auto", 1).type == "cuda"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["", "cuda:1", "meta", "cuda"])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {name}"):
        devices.pick(name, 1)


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert devices.cores() == 1
