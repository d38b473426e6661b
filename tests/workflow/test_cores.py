"""Captions by all GPUs of one machine."""

import os
import re

import pyarrow.parquet as pq
import pytest
from support.checkout import DEMO, edit, shrink
from support.nvidia import nvidia_smi


@pytest.fixture
def gpu_machine(checkout, tmp_path, monkeypatch):
    """A checkout on a machine with two GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi(tmp_path, {"GPU-0": [], "GPU-1": []})
    checkout.environment |= {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),  # where the locks of GPUs are
    }
    return checkout


CAPTIONS = "results/demo/captions/images.parquet"
# Each captioning job waits until four of them have locked a GPU: at the end of gpus.py.
TOGETHER = """

def refuse_unusable(*_, **__):
    pass  # the demo's engine computes on the CPU


claim_alone = claim


def claim(n=1):
    claim_alone(n)
    claimed = Path("claimed")
    claimed.mkdir(exist_ok=True)
    (claimed / os.environ[CLAIMED]).touch()
    for _ in range(3000):
        if len(list(claimed.iterdir())) == 4:
            return
        time.sleep(0.1)
    raise UserError("The others do not come.")
"""


def planned(checkout, *options):
    """Return what a dry run of the captions says."""
    run = checkout.run("snakemake", "--dry-run", "-j4", CAPTIONS, *options)
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.mark.slow
def test_four_gpus_caption_in_four_shards_at_once_and_other_machines_rerun_nothing(
    gpu_machine, tmp_path, new_checkout
):
    nvidia_smi(tmp_path, {f"GPU-{n}": [] for n in range(4)})
    edit(gpu_machine, DEMO, shrink)
    with (gpu_machine.root / "latteclip/core/gpus.py").open("a") as file:
        file.write(TOGETHER)
    run = gpu_machine.run("snakemake", "-j4", CAPTIONS)
    assert run.returncode == 0, run.stdout
    logs = [*gpu_machine.root.glob("results/demo/logs/caption_images-*-of-4.log")]
    used = {re.search(r"This job uses (GPU-\d)", log.read_text())[1] for log in logs}
    assert used == {f"GPU-{n}" for n in range(4)}
    for n in (2, 1, 0):
        nvidia_smi(tmp_path, {f"GPU-{i}": [] for i in range(n)})
        assert "Nothing to be done" in planned(gpu_machine)
    assert "gather_captions" in planned(gpu_machine, "--config", "captions={'shards': 3}")

    alone = new_checkout("one_shard")
    edit(alone, DEMO, shrink)
    run = alone.snakemake(CAPTIONS)
    assert run.returncode == 0, run.stdout
    one, four = (pq.read_table(each.root / CAPTIONS) for each in (alone, gpu_machine))
    assert one == four
    assert "Nothing to be done" in planned(alone)
