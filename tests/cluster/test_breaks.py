"""What befalls jobs on a real SLURM: kills, requeues, time that is over; and nothing is lost."""

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
from support.checkout import DEMO, edit
from support.slurm import MEMORY_MB, requested, wait

from latteclip.core import tables

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
IMAGES = "results/demo/images.parquet"
CAPTIONS = "results/demo/captions/images.parquet"
SCORES = "results/demo/class_scores.parquet"
FLYP = "results/demo/flyp/seed0"


# --- captions ------------------------------------------------------------------------------------


def processes_of(command, checkout):
    """(pid, environment) of the running processes of a command in the jobs of a checkout."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            pairs = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:  # it has ended, or is not ours
            continue
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        is_job = environment.get("SLURM_SUBMIT_DIR") == str(checkout.root)
        if command.encode() in words[1:3] and is_job:
            yield int(folder.name), environment


def test_captions_survive_what_befalls_their_job(indexed, on_cluster):
    with serving() as server:
        indexed.environment |= {"OPENAI_BASE_URL": server.url, "HF_HUB_OFFLINE": "0"}
        run = on_cluster(indexed, cold=("snakemake", "stages"))
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
            for _, found in processes_of("caption-images", indexed)
        }
        assert environment == ("1", first)  # where the controller itself had the hub
        run.slurm("scancel", first)
        second = run.running("caption_images", after=first)
        work(5)
        run.slurm.requeue(second)
        work(5)
        server.pause = 10.0  # the job is not to end before it is told to
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
        wait(lambda: not list(processes_of("caption-images", indexed)), "the end of the job")
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
        run = on_cluster(indexed, cold=("stages",))
        limits = f"{rule}_shard:mem_mb={MEMORY_MB // 4}"  # four at a time
        process = run.start(table, "--configfile", "eight.yaml", "--set-resources", limits)

        def has_answers():
            running = [pid for pid, _ in processes_of(rule.replace("_", "-"), indexed)]
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
    return history, tensors, json.loads((folder / "metrics.json").read_text())


def test_training_survives_what_befalls_its_job(indexed, on_cluster):
    command = (
        *(f"{FLYP}/metrics.json", "--config", "compute={'checkpoint_minutes': 0}"),
        "finetune={'epochs': 100, 'batch_size': 20}",
    )
    unbroken = indexed.snakemake(*command)
    assert unbroken.returncode == 0, unbroken.stdout
    expected = trained(indexed)
    shutil.rmtree(indexed.root / FLYP)

    run = on_cluster(indexed, cold=("snakemake", "stages"))
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
    (pid,) = {pid for pid, _ in processes_of("finetune", indexed)}
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
