"""The workflow on a real SLURM: what a cluster does to jobs, and what comes out all the same."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.chat_server import MODEL, serving
from support.checkout import DEMO, edit, shrink
from support.slurm import MEMORY_MB, OnCluster, Slurm, obstacle, wait

from latteclip.core import tables

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
IMAGES = "results/demo/images.parquet"
PSEUDO_LABELS = "results/demo/pseudo_labels.parquet"
CAPTIONS = "results/demo/captions/images.parquet"
SCORES = "results/demo/class_scores.parquet"
FLYP = "results/demo/flyp/seed0"
WHOLE = ("--config", "captions={'shards': 2}", "method=zero_shot,latteclip", "seeds=1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running SLURM."""
    if reason := obstacle():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm") / "slurm") as cluster:
        yield cluster


@pytest.fixture
def on_cluster(slurm):
    """Makes the workflow of a checkout run on the cluster."""
    yield lambda checkout: OnCluster(checkout, slurm)
    slurm.cancel_all()


@pytest.fixture
def indexed(checkout):
    """A checkout of the shrunken demo with pseudo-labels, made by this machine."""
    edit(checkout, DEMO, shrink)
    run = checkout.snakemake(PSEUDO_LABELS)
    assert run.returncode == 0, run.stdout
    return checkout


def measured(checkout, path):
    return json.loads((checkout.root / path).read_text())


def requested(job):
    """What a job asked for: partition, cores, memory in MB, minutes, GPUs."""
    asked = dict(item.split("=", 1) for item in job["ReqTRES"].split(","))
    hours, minutes, _ = map(int, job["TimeLimit"].split(":"))
    gpus = re.search(r"gpu[:=](\d+)", job.get("TresPerJob", ""))
    return {
        "partition": job["Partition"],
        "cores": int(asked["cpu"]),
        "memory": int(asked["mem"].removesuffix("M")),
        "minutes": 60 * hours + minutes,
        "gpus": int(gpus[1]) if gpus else 0,
    }


# --- a whole run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(slurm, new_checkout):
    """The shrunken demo as the cluster ran it, its captions in two shards."""
    checkout = new_checkout("whole")
    edit(checkout, DEMO, shrink)
    run = OnCluster(checkout, slurm)
    run.snakemake(*WHOLE)
    return run


def test_a_cluster_measures_what_one_machine_measures(whole, finished):
    for method in ("zero_shot", "latteclip"):
        path = f"results/demo/{method}/seed0/metrics.json"
        assert measured(whole.checkout, path) == measured(finished, path)


def test_each_stage_asks_for_what_it_needs(whole):
    asked = {}
    for job in whole.jobs():
        rule = re.fullmatch(r"rule_(.+)_wildcards_.+", job["Comment"])[1]
        asked.setdefault(rule, requested(job))
    assert {rule for rule, each in asked.items() if each["gpus"]} == {
        "pseudo_label_images",
        "caption_images_shard",
        "caption_groups_shard",
        "label_by_captions",
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


def test_shards_may_share_a_job_and_its_gpu(indexed, on_cluster):
    run = on_cluster(indexed)
    run.snakemake(
        *(CAPTIONS, "--config", "captions={'shards': 2}"),
        *("--groups", "caption_images_shard=captions", "--group-components", "captions=2"),
        *("--resources", "gpu=1", "--set-resource-scopes", "gpu=local"),
    )
    (job,) = run.jobs_of("captions")
    assert requested(job)["gpus"] == 1
    assert requested(job)["minutes"] >= 40  # of both together
    logs = sorted((indexed.root / "results/demo/logs").glob("caption_images-*-of-2.log"))
    assert [f"SLURM job {job['JobId']} on" in log.read_text() for log in logs] == [True, True]


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


# --- captions ------------------------------------------------------------------------------------


def processes_of(command):
    """(pid, environment) of the running processes of a command in SLURM's jobs.

    Other tests, which may run beside these, have processes of the same names.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            pairs = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:  # it has ended, or is not ours
            continue
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if command.encode() in words[1:3] and "SLURM_JOB_ID" in environment:
            yield int(folder.name), environment


def test_captions_survive_what_befalls_their_job(indexed, on_cluster):
    with serving() as server:
        indexed.environment |= {"OPENAI_BASE_URL": server.url, "HF_HUB_OFFLINE": "0"}
        run = on_cluster(indexed)
        engine = f"{{'engine': 'openai', 'model': '{MODEL}', 'concurrency': 2,"
        engine += " 'max_new_tokens': 40}"
        command = (CAPTIONS, "--config", f"captioner={engine}")
        server.pause = 0.3
        process = run.start(*command)

        def work(n):
            """Let the running job get n more answers."""
            wanted = server.answered + n
            wait(lambda: server.answered >= wanted, f"answer {wanted}")

        first = run.running("caption_images")
        work(5)
        (environment,) = {
            tuple(found[name] for name in ("HF_HUB_OFFLINE", "SLURM_JOB_ID"))
            for _, found in processes_of("caption-images")
        }
        assert environment == ("1", first)  # where the controller itself had the hub
        run.slurm("scancel", first)
        second = run.running("caption_images", after=first)
        work(5)
        run.slurm.requeue(second)
        work(5)
        beside = indexed.snakemake(*command)
        assert beside.returncode != 0
        assert "Directory cannot be locked" in beside.stdout

        # Its job goes on without the controller; whoever starts again meanwhile is told so.
        process.send_signal(signal.SIGKILL)
        process.wait()
        run.snakemake(*command, "--unlock")
        refused = run.start(*command)
        assert refused.wait() != 0
        assert re.search(
            rf"SLURM still has 1 jobs of another run in this folder.*scancel {second}", run.said()
        )
        assert "Traceback" not in run.said()

        server.pause = 0.0
        wait(lambda: not list(processes_of("caption-images")), "the end of the job")
        run.snakemake(*command, "--rerun-incomplete")
        n = len(tables.read_unlabelled(str(indexed.root / IMAGES), training=True)[0])
        captions = tables.read(str(indexed.root / CAPTIONS), tables.CAPTIONS)[0].to_pydict()
        assert len(captions["caption"]) == n
        assert all(captions["caption"])
        # Each of the three breaks may have lost the two answers that were on their way, and each of
        # the four starts asks about a black picture and about none.
        assert len(server.requests) <= n + 3 * 2 + 4 * 2


def answers_of(pid):
    """How many answers a process has kept: complete lines of the part that it writes."""
    with contextlib.suppress(OSError):  # it has ended
        parts = [link.resolve() for link in Path(f"/proc/{pid}/fd").iterdir()]
        return sum(part.read_bytes().count(b"\n") for part in parts if part.suffix == ".jsonl")
    return 0


@pytest.mark.parametrize(
    ("rule", "table"), [("caption_images", CAPTIONS), ("score_classes", SCORES)]
)
def test_of_eight_shards_one_is_killed_and_nothing_is_asked_twice(indexed, on_cluster, rule, table):
    captioner = {"engine": "openai", "model": MODEL, "concurrency": 2, "max_new_tokens": 40}
    edit(indexed, DEMO, lambda content: content["datasets"]["demo"]["captioner"].update(captioner))
    (indexed.root / "eight.yaml").write_text(
        "captions: {shards: 8}\nscores: {kind: letters, orders: 1}\n"
    )
    with serving() as server:
        indexed.environment |= {"OPENAI_BASE_URL": server.url}
        server.likely = lambda body: [("A", -0.1), ("B", -3.0)]
        server.pause = 0.5
        run = on_cluster(indexed)
        limits = f"{rule}_shard:mem_mb={MEMORY_MB // 4}"  # four at a time
        process = run.start(table, "--configfile", "eight.yaml", "--set-resources", limits)

        def has_answers():
            running = [pid for pid, _ in processes_of(rule.replace("_", "-"))]
            return next((pid for pid in running if answers_of(pid) >= 2), None)

        os.kill(wait(has_answers, "a shard with answers"), signal.SIGKILL)
        server.pause = 0.0
        run.finish(process)
        requests = server.requests

    n = len(tables.read_unlabelled(str(indexed.root / IMAGES), training=True)[0])
    assert pq.read_metadata(indexed.root / table).num_rows == n
    # Each of the nine starts asks about a black picture and about none.
    pictures = [request["body"]["messages"][0]["content"][:-1] for request in requests]
    asked = Counter(map(json.dumps, pictures))
    times = [count for count in asked.values() if count < 9]
    assert len(times) == n
    assert sum(times) - n <= captioner["concurrency"]  # what was on its way when the shard died
    # The others went on: only the dead one was submitted again.
    states = Counter(job["JobState"] for job in run.jobs_of(f"{rule}_shard"))
    assert states == {"COMPLETED": 8, "FAILED": 1}


# --- training ------------------------------------------------------------------------------------


def trained(checkout):
    """What a training left: history without times, tensors, metrics."""
    folder = checkout.root / FLYP
    history = pq.read_table(folder / "history.parquet").to_pydict()
    for timing in ("images_per_second", "data_wait"):
        del history[timing]
    files = ("model/open_clip_model.safetensors", "model/prototypes.safetensors")
    tensors = {name: (folder / name).read_bytes() for name in files}
    return history, tensors, measured(checkout, f"{FLYP}/metrics.json")


def test_training_survives_what_befalls_its_job(indexed, on_cluster):
    command = (
        *(f"{FLYP}/metrics.json", "--config", "compute={'checkpoint_every': 5}"),
        "finetune={'epochs': 100, 'batch_size': 20}",
    )
    unbroken = indexed.snakemake(*command)
    assert unbroken.returncode == 0, unbroken.stdout
    expected = trained(indexed)
    shutil.rmtree(indexed.root / FLYP)

    run = on_cluster(indexed)
    log = indexed.root / FLYP / "logs" / "finetune.log"

    def work():
        """Let the running job go on until it keeps another checkpoint."""
        kept = set((indexed.root / FLYP / "checkpoint").glob("step-*"))
        wait(
            lambda: set((indexed.root / FLYP / "checkpoint").glob("step-*")) - kept,
            "another checkpoint",
        )

    # A minute at the first attempt, two at the second, ...
    limits = ("finetune:runtime=attempt", "finetune:slurm_extra='--signal=TERM@10'")
    process = run.start(*command, "--set-resources", *limits)
    first = run.running("finetune")
    work()
    # It stands still until SLURM ends it because its minute is over.
    (pid,) = {pid for pid, _ in processes_of("finetune")}
    os.kill(pid, signal.SIGSTOP)
    second = run.running("finetune", after=first, patience=240)
    states = {job["JobId"]: job for job in run.jobs_of("finetune")}
    assert states[first]["JobState"] in ("TIMEOUT", "FAILED")
    assert [requested(states[number])["minutes"] for number in (first, second)] == [1, 2]
    work()
    assert "Going on after step" in log.read_text()
    run.slurm.requeue(second)
    work()
    assert "Going on after step" in log.read_text()
    run.slurm("scancel", second)
    run.running("finetune", after=second)
    run.finish(process)
    assert "Going on after step" in log.read_text()
    assert trained(indexed) == expected
    assert not (indexed.root / FLYP / "checkpoint").exists()


# --- what does not fit ---------------------------------------------------------------------------


def test_an_impossible_request_says_why(indexed, on_cluster):
    run = on_cluster(indexed)
    process = run.start(
        *(f"{FLYP}/history.parquet", "--retries", "0"),
        *("--set-resources", f"finetune:mem_mb={100 * MEMORY_MB}"),
    )
    assert process.wait() != 0
    assert "Memory specification can not be satisfied" in run.said()


def test_a_job_that_waits_says_for_what(indexed, on_cluster):
    run = on_cluster(indexed)
    run.slurm("sbatch", "--exclusive", "--output", "/dev/null", "--wrap", "sleep 600")
    process = run.start(f"{FLYP}/history.parquet")
    wait(lambda: run.jobs_of("finetune"), "a job in the queue")
    told = wait(lambda: _queue_of(indexed), "the queue")
    why = r"waits: all nodes that could take it are busy \(Resources\)"
    assert re.search(rf"SLURM queue: 1 jobs\n +job \d+ +finetune demo_flyp_0 +{why}", told)
    process.send_signal(signal.SIGINT)
    process.wait()
    states = [job["JobState"] for job in run.jobs_of("finetune")]
    assert states[-1] == "CANCELLED"  # snakemake takes its jobs along


def _queue_of(checkout):
    told = checkout.run("latteclip", "status", "--config", "method=flyp", "seeds=1")
    assert told.returncode == 0, told.stdout
    return "Resources" in told.stdout and told.stdout
