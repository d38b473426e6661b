"""The workflow on a real SLURM: its jobs, a training that is requeued, and the same results."""

import json
import re
import shutil

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TRAINING = "results/demo/latteclip/seed0"
WHOLE = ("captions={'shards': 2}", "method=zero_shot,latteclip", "seeds=1")
ON_GPUS = {
    *("pseudo_label_images", "caption_images_shard", "caption_groups_shard"),
    *("fuse_labels", "finetune", "evaluate"),
}
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
def run(finished, on_cluster, tmp_path_factory):
    """The shrunken demo as the cluster ran it, its training requeued in the middle."""
    checkout = finished.copy(tmp_path_factory.mktemp("cluster") / "checkout")
    shutil.rmtree(checkout.root / "results")
    with (checkout.root / "latteclip/train/finetune.py").open("a") as file:
        file.write(WAITING)
    run = on_cluster(checkout)
    process = run.start("--config", *WHOLE, "compute={'checkpoint_minutes': 0}")
    folder = checkout.root / TRAINING
    run.wait(lambda: [*folder.glob("checkpoint/step-*.pt")], "a checkpoint")
    run.slurm.requeue(run.jobs_of("finetune")[-1]["JobId"])
    run.finish(process)
    return run


def test_a_cluster_measures_what_one_machine_measures_though_a_training_was_requeued(
    run, finished
):
    for method in ("zero_shot", "latteclip"):
        name = f"results/demo/{method}/seed0/metrics.json"
        here, there = (
            json.loads((x.root / name).read_text()) for x in (run.checkout, finished)
        )
        assert here == there
    log = (run.checkout.root / TRAINING / "logs" / "finetune.log").read_text()
    assert "Resuming after step" in log
    assert re.search(r"SLURM job \d+ on .*CUDA_VISIBLE_DEVICES=[01]\.", log)
    assert not (run.checkout.root / TRAINING / "checkpoint").exists()


def test_each_stage_asks_for_what_it_needs(run):
    asked = {}
    for job in run.jobs():
        rule = re.fullmatch(r"rule_(.+)_wildcards_.+", job["Comment"])[1]
        asked.setdefault(rule, run.requested(job))
    assert {rule for rule, each in asked.items() if each["gpus"]} == ON_GPUS
    for rule, each in asked.items():
        assert each["partition"] == ("gpu" if each["gpus"] else "cpu"), rule
        assert each["memory"] >= 4_000, rule
        assert each["minutes"] >= 10, rule
    assert asked["index_images"]["cores"] == 8  # whatever the login node has
    assert not {"summarize", "index_results", "all"} & set(asked)  # on the login node
    shards = run.jobs_of("caption_images_shard")
    assert [job["JobState"] for job in shards] == ["COMPLETED"] * 2
