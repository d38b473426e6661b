import json
import os
import socket
import subprocess
import sys

import pytest

from latteclip.cli import runs
from latteclip.cli.runs import QueuedJob
from latteclip.core.errors import UserError

UNLOCK = "snakemake --unlock"


def test_a_lock_is_removed_unless_its_process_lives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.LOCKS.mkdir(parents=True)
    (runs.LOCKS / "0.output.lock").touch()
    runs.note_run()
    here = f"process {os.getpid()} on {socket.gethostname()}"
    assert here in runs.describe_lock(UNLOCK) and UNLOCK not in runs.describe_lock(UNLOCK)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for host, process in ((socket.gethostname(), gone.pid), ("elsewhere", os.getpid())):
        runs.LOCK_NOTE.write_text(json.dumps({"host": host, "process": process}))
        assert runs.describe_lock(UNLOCK).endswith(UNLOCK)


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that runs the Python that it is given; its folder is alone on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(code):
        program = folder / "squeue"
        program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
        program.chmod(0o755)

    return install


@pytest.fixture
def listing(squeue, tmp_path):
    """Makes squeue list rows, whose %Z is a folder below tmp_path."""

    def install(*rows):
        lines = ["\t".join([*row[:-2], str(tmp_path / row[-2]), row[-1]]) for row in rows]
        squeue(f"print(*{lines!r}, sep='\\n', end='\\n' * {bool(lines)})")

    return install


WAITING = ("3", "PENDING", "Resources", "0:00", "2:00:00", "here")
RUNNING = ("4_2", "RUNNING", "None", "1:05", "20:00", "here")


def test_a_second_run_is_refused_and_names_the_jobs_of_the_folder(
    listing, squeue, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    listing(
        (*WAITING, "rule_finetune_wildcards_demo_flyp_0"),
        (*RUNNING, "rule_caption_images_shard_wildcards_demo_2_4"),
        (*RUNNING[:-1], "elsewhere", "rule_finetune_wildcards_demo_flyp_0"),
        (*RUNNING, "(null)"),  # somebody's own job, submitted in the same folder
        (*RUNNING[:-1], "link", "rule_all"),
    )
    assert runs.queue() == [
        QueuedJob("3", "finetune demo_flyp_0", "waits: Resources"),
        QueuedJob("4_2", "caption_images_shard demo_2_4", "running for 1:05 of 20:00"),
        QueuedJob("4_2", "all", "running for 1:05 of 20:00"),
    ]
    with pytest.raises(UserError, match="scancel 3 4_2"):
        runs.refuse_second_run()
    listing()
    runs.refuse_second_run()
    squeue("sys.exit('slurm_load_jobs error: Unable to contact slurm controller')")
    with pytest.raises(UserError, match="squeue"):
        runs.queue()
