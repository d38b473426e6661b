import json
import os
import re
import socket
import subprocess
import sys

import pytest

from latteclip.cli import status
from latteclip.cli.status import QueuedJob
from latteclip.core import run_options
from latteclip.core.errors import UserError


def test_a_dataset_is_looked_at_with_the_options_of_its_last_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = {"image_dir": "photos", "seeds": 1, "captioner": {"revision": None}}
    run_options.note_options({"a": "a", "b": "b"}, mine)
    run_options.note_options({"c_64": "c"}, {"limit": 64})
    of_two = ["image_dir=photos", "seeds=1", 'captioner={"revision": null}']
    assert list(status._options(["a", "b", "c_64", "dtd"], [], [])) == [
        ["--config", *sorted(of_two), 'dataset=["a", "b"]'],
        ["--config", "limit=64", 'dataset=["c"]'],
        ["--config", 'dataset=["dtd"]'],
    ]
    given = status._options(["a"], ["seeds=2"], [])
    assert list(given) == [["--config", "seeds=2", 'dataset=["a"]']]


def files_of(root):
    return {
        path: path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and ".snakemake" not in path.parts and path.suffix != ".pyc"
    }


def test_stages_are_done_stale_or_missing_and_the_reason_follows(finished_copy):
    with (finished_copy.root / "latteclip" / "data" / "splits.py").open("a") as file:
        file.write("\n# Edited.\n")
    before = files_of(finished_copy.root)
    words = ("status", "--config", "seeds=2", "method=zero_shot,flyp")
    run = finished_copy.latteclip(*words)
    assert run.returncode == 0, run.stdout
    assert files_of(finished_copy.root) == before
    stages, _, _ = run.stdout.partition("SLURM queue")  # which this machine may have
    lines = [re.split(r"\s{2,}", line.strip()) for line in stages.splitlines() if line]
    assert re.match(r"demo: \d+ of 11 jobs done", lines[0][0])
    assert ["stale", "index_images", "settings or code changed"] in lines
    assert ["stale", "finetune", "flyp, seed 0", "an earlier stage will run"] in lines
    assert ["missing", "finetune", "flyp, seed 1", "not run yet"] in lines


UNLOCK = "snakemake --unlock"


def test_a_lock_is_removed_unless_its_process_lives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status.describe_lock(UNLOCK) is None
    status.LOCKS.mkdir(parents=True)
    (status.LOCKS / "0.output.lock").touch()
    assert status.describe_lock(UNLOCK).endswith(UNLOCK)
    status.note_run()
    here = f"process {os.getpid()} on this machine"
    assert here in status.describe_lock(UNLOCK) and UNLOCK not in status.describe_lock(
        UNLOCK
    )
    gone = subprocess.Popen(["true"])
    gone.wait()
    for host, process in ((socket.gethostname(), gone.pid), ("elsewhere", os.getpid())):
        status.LOCK_NOTE.write_text(json.dumps({"host": host, "process": process}))
        assert status.describe_lock(UNLOCK).endswith(UNLOCK)


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
    assert status.queue() == [
        QueuedJob("3", "finetune demo_flyp_0", "waits: Resources"),
        QueuedJob("4_2", "caption_images_shard demo_2_4", "running for 1:05 of 20:00"),
        QueuedJob("4_2", "all", "running for 1:05 of 20:00"),
    ]
    with pytest.raises(UserError, match="scancel 3 4_2"):
        status.refuse_second_run()
    listing()
    status.refuse_second_run()
    squeue("sys.exit('slurm_load_jobs error: Unable to contact slurm controller')")
    with pytest.raises(UserError, match="squeue"):
        status.queue()
