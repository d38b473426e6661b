"""The workflow on a real SLURM: what a cluster does to jobs, and what comes out all the same."""

import json
import re

import pytest
from support.checkout import DEMO, edit, shrink
from support.slurm import OnCluster, requested

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
FLYP = "results/demo/flyp/seed0"
WHOLE = ("--config", "captions={'shards': 2}", "method=zero_shot,latteclip", "seeds=1")


# --- a whole run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(slurm, new_checkout):
    """The shrunken demo as the cluster ran it, its captions in two shards."""
    checkout = new_checkout("whole")
    edit(checkout, DEMO, shrink)
    run = OnCluster(checkout, slurm)
    run.snakemake(*WHOLE)
    return run


def test_a_cluster_measures_what_one_machine_measures(whole, measured_here):
    for method in ("zero_shot", "latteclip"):
        path = f"results/demo/{method}/seed0/metrics.json"
        assert json.loads((whole.checkout.root / path).read_text()) == measured_here[method]


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
    assert {"generate_textures", "index_images", "gather_captions", "report_dataset"} <= set(asked)
    assert not {"summarize", "index_results", "all"} & set(asked)  # on the login node


def test_stages_on_gpu_nodes_see_their_gpu(whole):
    logs = whole.checkout.root / "results" / "demo"
    for name in ("logs/pseudo_label_images.log", "latteclip/seed0/logs/finetune.log"):
        text = (logs / name).read_text()
        assert re.search(r"SLURM job \d+ on .*CUDA_VISIBLE_DEVICES=[01]\.", text)
    assert "CUDA_VISIBLE_DEVICES=." in (logs / "logs/index_images.log").read_text()


def test_each_shard_of_captions_is_a_job(whole):
    for kind in ("images", "groups"):
        jobs = whole.jobs_of(f"caption_{kind}_shard")
        assert [(job["JobState"], "ArrayJobId" in job) for job in jobs] == [
            ("COMPLETED", False)
        ] * 2


def test_a_finished_run_has_nothing_to_do(whole):
    said = whole.snakemake(*WHOLE)
    assert "Nothing to be done" in said


def test_each_gpu_of_a_job_has_a_task_and_its_share_of_the_cores(indexed, on_cluster):
    run = on_cluster(indexed)
    two = ("--config", "processes={'finetune': 2}", "threads={'finetune': 6}")
    run.snakemake(f"{FLYP}/history.parquet", *two, "--resources", "gpu=2")
    (job,) = run.jobs_of("finetune")
    assert (job["NumNodes"], job["NumTasks"]) == ("1", "2")
    assert (requested(job)["gpus"], requested(job)["cores"]) == (2, 6)
    assert job["CpusPerTres"].endswith("gpu:3")
    # One of the tasks is the job step, which starts a process for each GPU: it sees all of them.
    log = (indexed.root / FLYP / "logs" / "finetune.log").read_text()
    assert "CUDA_VISIBLE_DEVICES=0,1." in log


# --- what does not fit ---------------------------------------------------------------------------
