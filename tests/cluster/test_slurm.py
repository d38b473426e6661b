"""The workflow on a real SLURM: its jobs, a training that is requeued, and the same results."""

import json
import re
import shutil

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TRAINING = "results/demo/latteclip/seed0"
WHOLE = ("compute={'shards': 2}", "method=zero_shot,latteclip", "seeds=1")
ON_GPUS = {
    *("pseudo_label_images", "caption_images_shard", "caption_groups_shard"),
    *("write_votes", "finetune", "evaluate"),
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
    """The shrunken demo as the cluster ran it, its captions in two shards."""
    checkout = finished.copy(tmp_path_factory.mktemp("cluster") / "checkout")
    shutil.rmtree(checkout.root / "results")
    run = on_cluster(checkout)
    run.finish(run.start("--config", *WHOLE))
    return run


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
    assert asked["index_images"]["cores"] == 1  # as configured, whatever the login node has
    assert not {"summarize", "all"} & set(asked)  # on the login node
    shards = run.jobs_of("caption_images_shard")
    assert [job["JobState"] for job in shards] == ["COMPLETED"] * 2


def metrics_of(checkout):
    methods = ("zero_shot", "latteclip")
    paths = [checkout.root / f"results/demo/{name}/seed0/metrics.json" for name in methods]
    return [json.loads(path.read_text()) for path in paths]


def test_a_requeued_training_continues_to_what_one_machine_measures(
    run, finished, on_cluster
):
    assert metrics_of(run.checkout) == metrics_of(finished)
    with (run.checkout.root / "latteclip/train/finetune.py").open("a") as file:
        file.write(WAITING)
    folder = run.checkout.root / TRAINING
    shutil.rmtree(folder)
    run = on_cluster(run.checkout, is_cold=True)
    options = ("--config", *WHOLE, "compute={'checkpoint_minutes': 0}")
    process = run.start(f"{TRAINING}/metrics.json", *options)
    run.wait(lambda: [*folder.glob("checkpoint/step-*.pt")], "a checkpoint")
    run.slurm.requeue(run.jobs_of("finetune")[-1]["JobId"])
    run.finish(process)
    log = (folder / "logs" / "finetune.log").read_text()
    assert "Resuming after step" in log
    assert re.search(r"SLURM job \d+ on .*CUDA_VISIBLE_DEVICES=[01]\.", log)
    assert metrics_of(run.checkout) == metrics_of(finished)
    assert not (folder / "checkpoint").exists()
