import contextlib
import os

import pytest
import torch
from support.nvidia import nvidia_smi

from latteclip.core import devices
from latteclip.core.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """Plays a card that computes in bfloat16, or one that does not."""

    def play(has_bf16):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")

    return play


@pytest.mark.parametrize("precision", devices.PRECISIONS)
def test_a_cpu_computes_as_it_stores_whatever_the_precision(precision):
    with devices.autocast(CPU, precision):
        product = torch.ones(2, 3) @ torch.ones(3, 2)
    assert product.dtype == torch.float32
    devices.check_precision(CPU, precision)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_half_precisions_are_autocast_on_a_gpu(precision, dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch, "autocast", lambda *args, **kwargs: asked.append((args, kwargs)) or "autocast"
    )
    assert devices.autocast(CUDA, precision) == "autocast"
    assert asked == [(("cuda",), {"dtype": dtype})]


def test_float32_is_no_autocast_on_a_gpu():
    assert isinstance(devices.autocast(CUDA, "float32"), contextlib.nullcontext)


def test_a_card_without_bfloat16_is_told_what_to_set(card):
    card(has_bf16=False)
    with pytest.raises(UserError, match=r"clip.precision is bf16, which the card Tesla T4 cannot"):
        devices.check_precision(CUDA, "bf16")
    devices.check_precision(CUDA, "fp16")
    devices.check_precision(CUDA, "float32")


def test_a_card_with_bfloat16_takes_every_precision(card):
    card(has_bf16=True)
    for precision in devices.PRECISIONS:
        devices.check_precision(CUDA, precision)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_an_unknown_precision_is_refused_with_the_known_ones(device):
    with pytest.raises(UserError, match=r"clip.precision 'half' is none of bf16, fp16, float32"):
        devices.check_precision(device, "half")


@pytest.mark.parametrize(("has_gpu", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(has_gpu, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert devices.pick("auto", 1).type == kind


@pytest.fixture
def gpu_machine(tmp_path, monkeypatch):
    """NVIDIA's driver shows a GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LATTECLIP_GPUS", "shared")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    nvidia_smi(tmp_path, {"GPU-0": []}, driver="535.1")


def test_a_gpu_that_torch_cannot_use_is_no_silent_run_on_the_cpu(gpu_machine, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for wanted in ("auto", "cuda"):
        with pytest.raises(UserError, match=r"CUDA 13\.0, which needs driver 580 .* driver 535\.1"):
            devices.pick(wanted, 1)
    assert devices.pick("cpu", 1) == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    caplog.clear()
    assert devices.pick("auto", 1) == CPU
    assert "runs on the CPU, though torch is built for CUDA 13.0" in caplog.text


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="--device cuda: torch sees 0 GPUs here"):
        devices.pick("cuda", 1)


def test_a_device_is_picked_with_its_threads():
    before = torch.get_num_threads()
    try:
        assert devices.pick("cpu", 3) == CPU
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:9999999999", "cpu\n", "meta"])
def test_a_name_of_no_device_is_refused(name):
    with pytest.raises(UserError, match="is none of auto, cpu, cuda and cuda:<n>"):
        devices.pick(name, 1)


@pytest.mark.parametrize("threads", [0, -3])
def test_no_threads_are_refused(threads):
    with pytest.raises(UserError, match=f"{threads} threads cannot work"):
        devices.pick("cpu", threads)


@pytest.mark.parametrize(("n", "name"), [(0, "cuda"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there_is_refused(n, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    with pytest.raises(UserError, match=f"--device {name}: torch sees {n} GPUs here"):
        devices.pick(name, 1)


def test_a_gpu_that_is_there_is_picked_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.pick("cuda:1", 1) == torch.device("cuda", 1)


def test_a_tensor_is_sent_to_a_gpu_without_waiting():
    calls = []

    class Pinned:
        def to(self, device, non_blocking):
            calls.append((device, non_blocking))
            return "there"

    class Host:
        def pin_memory(self):
            return Pinned()

    assert devices.send(Host(), CUDA) == "there"
    assert calls == [(CUDA, True)]
    tensor = torch.ones(2)
    assert devices.send(tensor, CPU) is tensor


def test_a_job_says_how_many_cores_it_has_and_why(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert devices.cores_in_use(16).startswith("16 threads on 16 cores, all that this machine")
    assert devices.cores_in_use(4).startswith("4 threads on 16 cores: what -j or --cores of snake")
