"""How many cores and GPUs a job gets on one machine."""

import os
import re

import pyarrow.parquet as pq
import pytest
from support.checkout import DEMO, edit, shrink
from support.nvidia import nvidia_smi

SINGLE = ("dataset=demo", "method=flyp", "threads={'finetune': 1}")


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


def threads(checkout, *options):
    """Of the trainings of a dry run."""
    run = checkout.run("snakemake", "--dry-run", *options)
    assert run.returncode == 0, run.stdout
    jobs = re.findall(r"rule finetune:.*?\n\n", run.stdout, re.DOTALL)
    return [int(found[1]) if (found := re.search(r"threads: (\d+)", job)) else 1 for job in jobs]


@pytest.mark.skipif(os.cpu_count() < 2, reason="there is one core to share out")
def test_a_training_beside_a_gpu_has_all_cores_that_snakemake_may_use(gpu_machine):
    one, two = (("--config", *SINGLE, f"seeds={n}") for n in (1, 2))
    assert threads(gpu_machine, "--cores", "2", *one) == [2]
    assert threads(gpu_machine, "-j1", *one) == [1]
    assert threads(gpu_machine, "--cores", "2", *two) == [1, 1]  # one on each GPU
    one_gpu = ("--resources", "gpu=1")
    assert threads(gpu_machine, "--cores", "2", *one_gpu, *two) == [2, 2]  # one after the other


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


def test_shards_that_cannot_run_at_once_are_a_warning_and_cores_are_shared_out(gpu_machine):
    config = ("--config", "dataset=dtd", "method=latteclip", "captions={'shards': 2}")
    run = gpu_machine.run("snakemake", "--dry-run", "--cores", "2", *config)
    jobs = re.findall(r"rule caption_\w+_shard:.*?\n\n", run.stdout, re.DOTALL)
    assert len(jobs) == 4
    assert not any("threads:" in job for job in jobs)  # one each
