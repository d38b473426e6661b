"""Captions by all GPUs of one machine, and a login node without one."""

import os
import re
import shutil

import pyarrow.parquet as pq
import pytest
from support.nvidia import broken_nvidia_smi, nvidia_smi

CAPTIONS = "results/demo/captions/images.parquet"
# Each captioning job waits until both have locked a GPU: at the end of gpus.py.
TOGETHER = """

def refuse_unusable(*_, **__):
    pass  # the demo's engine computes on the CPU


claim_alone = claim


def claim(n=1, number=None):
    claim_alone(n, number)
    claimed = Path("claimed")
    claimed.mkdir(exist_ok=True)
    (claimed / os.environ[CLAIMED]).touch()
    for _ in range(3000):
        if len(list(claimed.iterdir())) == 2:
            return
        time.sleep(0.1)
    raise UserError("The other does not come.")
"""


@pytest.mark.slow
def test_two_gpus_caption_in_two_shards_at_once_and_other_machines_rerun_nothing(
    finished_copy, tmp_path, monkeypatch
):
    root = finished_copy.root
    alone = pq.read_table(root / CAPTIONS)
    for folder in ("results", "resources"):
        shutil.rmtree(root / folder / "demo/captions")
    with (root / "latteclip/core/gpus.py").open("a") as file:
        file.write(TOGETHER)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finished_copy.environment |= {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),  # where the locks of GPUs are
    }
    nvidia_smi(tmp_path, ["GPU-0", "GPU-1"])
    run = finished_copy.snakemake(CAPTIONS)
    assert run.returncode == 0, run.stdout
    logs = root.glob("results/demo/logs/caption_images-*-of-2.log")
    used = {re.search(r"This job uses (GPU-\d)", log.read_text())[1] for log in logs}
    assert used == {"GPU-0", "GPU-1"}
    assert pq.read_table(root / CAPTIONS) == alone
    nvidia_smi(tmp_path, [])
    planned = finished_copy.snakemake("--dry-run", CAPTIONS)
    assert "Nothing to be done" in planned.stdout
    three = ("--config", "compute={'shards': 3}")
    assert (
        "gather_captions" in finished_copy.snakemake("--dry-run", CAPTIONS, *three).stdout
    )


def test_a_login_node_with_a_driver_and_no_gpu_plans_jobs_with_gpus(
    checkout, tmp_path, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    broken_nvidia_smi(tmp_path)
    plan = (
        "--dry-run",
        "--verbose",
        "--config",
        "dataset=demo",
        "method=latteclip,recommended",
    )
    checkout.environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    here = checkout.snakemake(*plan)
    there = checkout.snakemake(*plan, "--workflow-profile", "profiles/slurm")
    assert here.returncode and "nvidia-smi fails" in here.stdout
    assert there.returncode == 0, there.stdout
    jobs = re.findall(
        r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", there.stdout, re.MULTILINE
    )
    assert {rule for rule, lines in jobs if "gpu=1" in lines} == {
        *("pseudo_label_images", "caption_images", "caption_groups", "write_votes"),
        *("find_learning_rate", "finetune", "average_weights", "evaluate"),
    }
