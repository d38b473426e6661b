import os

import pytest
import torch
from support.processes import nvidia_smi

from latteclip.core import devices
from latteclip.core.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_card_without_bfloat16_is_told_what_to_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    with pytest.raises(UserError, match=r"clip\.precision .*Tesla T4"):
        devices.check_precision(CUDA, "bf16")
    devices.check_precision(CUDA, "fp16")
    devices.check_precision(CUDA, "float32")


def test_a_gpu_that_torch_cannot_use_is_no_silent_run_on_the_cpu(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LATTECLIP_GPUS", "shared")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    nvidia_smi(tmp_path, ["GPU-0"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for wanted in ("auto", "cuda"):
        with pytest.raises(UserError, match="NVIDIA driver"):
            devices.pick(wanted, 1)
    assert devices.pick("cpu", 1) == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    caplog.clear()
    assert devices.pick("auto", 1) == CPU
    assert "CPU" in caplog.text


@pytest.mark.parametrize("name", ["", "cuda:1", "meta", "cuda"])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {name}"):
        devices.pick(name, 1)
