"""The workflow on a real SLURM: its jobs, a training that is requeued, and the same results."""

import json
import re
import shutil

import pytest
from support.slurm import OnCluster, Slurm, obstacle, requested, wait

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
LATTECLIP = "results/demo/latteclip/seed0"
METHODS = "method=zero_shot,latteclip"
WHOLE = ("--config", "captions={'shards': 2}", METHODS, "seeds=1")
# The training waits after its first step until SLURM stops it: at the end of finetune.py.
WAITING = """

import os
import time

CHECK_EVERY = 1  # steps
save_alone = CheckpointManager.save


def save(self, training):
    save_alone(self, training)
    while not training.signals.number and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(0.1)


CheckpointManager.save = save
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running SLURM."""
    if reason := obstacle():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm") / "slurm") as cluster:
        yield cluster


def metrics_of(checkout):
    paths = (
        f"results/demo/{method}/seed0/metrics.json" for method in ("zero_shot", "latteclip")
    )
    return [json.loads((checkout.root / path).read_text()) for path in paths]


@pytest.fixture(scope="module")
def whole(slurm, finished, tmp_path_factory):
    """The shrunken demo as the cluster ran it, its captions in two shards."""
    checkout = finished.copy(tmp_path_factory.mktemp("cluster") / "checkout")
    shutil.rmtree(checkout.root / "results")
    run = OnCluster(checkout, slurm)
    run.finish(run.start(*WHOLE))
    return run


def test_a_cluster_measures_what_one_machine_measures(whole, finished):
    assert metrics_of(whole.checkout) == metrics_of(finished)
    assert "Nothing to be done" in whole.finish(whole.start(*WHOLE))


def test_each_stage_asks_for_what_it_needs(whole):
    asked = {}
    for job in whole.jobs():
        rule = re.fullmatch(r"rule_(.+)_wildcards_.+", job["Comment"])[1]
        asked.setdefault(rule, requested(job))
    assert {rule for rule, each in asked.items() if each["gpus"]} == {
        "pseudo_label_images",
        "caption_images_shard",
        "caption_groups_shard",
        "fuse_labels",
        "finetune",
        "evaluate",
    }
    for rule, each in asked.items():
        assert each["partition"] == ("gpu" if each["gpus"] else "cpu"), rule
        assert each["memory"] >= 4_000, rule
        assert each["minutes"] >= 10, rule
    assert asked["index_images"]["cores"] == 8  # whatever the login node has
    assert {"index_images", "gather_captions", "report_dataset"} <= set(asked)
    assert not {"summarize", "index_results", "all"} & set(asked)  # on the login node
    shards = whole.jobs_of("caption_images_shard")
    assert [(job["JobState"], "ArrayJobId" in job) for job in shards] == [
        ("COMPLETED", False)
    ] * 2
    log = (whole.checkout.root / LATTECLIP / "logs" / "finetune.log").read_text()
    assert re.search(r"SLURM job \d+ on .*CUDA_VISIBLE_DEVICES=[01]\.", log)


def test_a_requeued_training_on_two_gpus_continues_to_its_end(whole, finished):
    checkout = whole.checkout
    with (checkout.root / "latteclip/train/finetune.py").open("a") as file:
        file.write(WAITING)
    folder = checkout.root / LATTECLIP
    shutil.rmtree(folder)
    run = OnCluster(checkout, whole.slurm, cold=True)
    command = (
        f"{LATTECLIP}/metrics.json",
        *WHOLE,
        "threads={'finetune': 6}",
        "compute={'checkpoint_minutes': 0}",
    )
    process = run.start(*command)
    wait(lambda: [*folder.glob("checkpoint/step-*.pt")], "a checkpoint")
    job = run.jobs_of("finetune")[-1]
    assert (requested(job)["gpus"], requested(job)["cores"]) == (1, 6)
    run.slurm.requeue(job["JobId"])
    run.finish(process)
    log = (folder / "logs" / "finetune.log").read_text()
    assert "Resuming after step" in log
    assert metrics_of(checkout)[1]["acc1"] == metrics_of(finished)[1]["acc1"]
    assert not (folder / "checkpoint").exists()
