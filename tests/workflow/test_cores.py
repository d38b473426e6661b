"""How many cores a job gets on one machine."""

import os
import re

import pytest
from support.nvidia import nvidia_smi

SINGLE = ("dataset=demo", "method=flyp", "threads={'finetune': 1}")


@pytest.fixture
def gpu_machine(checkout, tmp_path):
    """A checkout on a machine with two GPUs."""
    nvidia_smi(tmp_path, {"GPU-0": [], "GPU-1": []})
    checkout.environment["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
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
    assert threads(gpu_machine, "--cores", "2", *two) == [2, 2]  # one after the other
    assert threads(gpu_machine, "--cores", "2", "--resources", "gpu=2", *two) == [1, 1]
