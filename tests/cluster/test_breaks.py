"""What befalls jobs on a real SLURM: kills, requeues, time that is over; and nothing is lost."""

import json
import os
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.slurm import requested, wait

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
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
    assert "Resuming after step" in log.read_text()
    run.slurm.requeue(second)
    work()
    assert "Resuming after step" in log.read_text()
    run.slurm("scancel", second)
    run.running("finetune", after=second)
    run.finish(process)
    assert "Resuming after step" in log.read_text()
    assert trained(indexed) == expected
    assert not (indexed.root / FLYP / "checkpoint").exists()
