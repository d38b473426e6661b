import os
import signal
import subprocess
import sys

import pytest

# A process that starts another one, as vLLM does, and is then told to end.
STARTS = """
import multiprocessing, os, signal, sys
from latteclip.core import errors

def goes_on(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    signal.pause()

errors.GRACE = 0.1
context = multiprocessing.get_context("fork")
ready = context.Event()
with errors.ending_in_order("Nothing."):
    child = context.Process(target=goes_on, args=(ready,))
    child.start()
    ready.wait()
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_an_engine_that_goes_on_is_gone_when_its_job_has_ended():
    run = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True)
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(run.stdout), 0)
