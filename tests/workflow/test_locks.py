import os
import re
import shlex
import signal
import time

import pytest
from support.checkout import DEMO, edit, shrink


@pytest.mark.slow
def test_status_names_the_lock_of_a_killed_run_and_the_command_that_removes_it(checkout):
    edit(checkout, DEMO, shrink)
    target = "results/demo/images.parquet"
    note = checkout.root / ".snakemake" / "latteclip_run.json"
    run = checkout.start("snakemake", "-j1", target, start_new_session=True)
    try:
        while not note.exists() and run.poll() is None:
            time.sleep(0.005)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    status = checkout.latteclip("status", "demo").stdout
    unlock = re.search(r"^lock: .* remove the lock: (.+)$", status, re.MULTILINE)[1]
    assert checkout.snakemake(target).returncode != 0
    program, *words = shlex.split(unlock)
    assert program == "snakemake"
    done = checkout.snakemake(*words)
    assert done.returncode == 0, done.stdout
    again = checkout.snakemake(target)
    assert again.returncode == 0, again.stdout
    assert not list(checkout.root.rglob("*.tmp"))
