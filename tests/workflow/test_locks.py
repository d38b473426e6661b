import os
import signal
import time

import pytest
from support.checkout import DEMO, edit, shrink


@pytest.mark.slow
def test_after_a_killed_run_the_next_names_the_option_that_removes_its_lock(checkout):
    edit(checkout, DEMO, shrink)
    target = "results/demo/images.parquet"
    lock = checkout.root / ".snakemake" / "locks" / "0.output.lock"
    run = checkout.start("snakemake", "-j1", target, start_new_session=True)
    try:
        while not (lock.exists() and lock.read_text()) and run.poll() is None:
            time.sleep(0.005)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    refused = checkout.snakemake(target)
    assert refused.returncode != 0 and "--unlock" in refused.stdout
    checkout.ran("--unlock")
    checkout.ran(target)
    assert not list(checkout.root.rglob("*.tmp"))
