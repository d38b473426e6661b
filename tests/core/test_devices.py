import os
import tempfile

import pytest
import torch
from support.nvidia import nvidia_smi

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


@pytest.mark.parametrize("visible", [None, "2,0,1"])
def test_a_gpu_of_a_number_is_claimed_and_the_only_one(visible, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nvidia_smi(tmp_path, [f"GPU-{number}" for number in range(3)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = {"CUDA_VISIBLE_DEVICES": visible, "LATTECLIP_GPUS": None}
    for variable, value in seen.items():
        monkeypatch.setenv(variable, value or "")
        if value is None:
            monkeypatch.delenv(variable)
    monkeypatch.setattr(
        torch.cuda,
        "device_count",
        lambda: len(os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2").split(",")),
    )
    assert devices.pick("cuda:2", 1) == CUDA
    wanted = "1" if visible else "GPU-2"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["LATTECLIP_GPUS"] == wanted


@pytest.mark.parametrize(
    ("n", "name"), [(0, ""), (0, "cuda:x"), (0, "meta"), (0, "cuda"), (2, "cuda:2")]
)
def test_a_device_that_is_not_there_is_refused(n, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    with pytest.raises(UserError, match=f"--device {name}"):
        devices.pick(name, 1)
