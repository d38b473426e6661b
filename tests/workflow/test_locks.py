import os
import re
import shlex
import signal
import time

import pytest
from support.checkout import DEMO, edit, shrink


@pytest.mark.slow
def test_status_tells_the_lock_of_a_killed_run_and_how_to_go_on(checkout):
    """A run is stopped while it works, asked for, killed, asked for, and unlocked as it is told."""
    edit(checkout, DEMO, shrink)
    target = "results/demo/images.parquet"
    note = checkout.root / ".snakemake" / "latteclip_run.json"
    run = checkout.start("snakemake", "-j1", target, start_new_session=True)
    try:
        while not note.exists() and run.poll() is None:
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGSTOP)
        said = checkout.run("latteclip", "status", "demo").stdout
        assert f"lock: A run works in this folder: process {run.pid} on " in said
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    said = checkout.run("latteclip", "status", "demo").stdout
    unlock = re.search(r"^lock: .* is gone\. Remove the lock: (.+)$", said, re.MULTILINE)[1]
    assert checkout.snakemake(target).returncode != 0
    done = checkout.run(*shlex.split(unlock))
    assert done.returncode == 0, done.stdout
    assert "lock:" not in checkout.run("latteclip", "status", "demo").stdout
    again = checkout.snakemake(target)
    assert again.returncode == 0, again.stdout
    assert not list(checkout.root.rglob("*.tmp"))
