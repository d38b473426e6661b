"""A run that is killed ends with what an unbroken run gives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.captioning import changed
from support.checkout import hear_interrupts
from support.commands import SETTINGS, command, read
from support.servers import ChatServer
from support.tiny import write_index, write_pictures

N, CONCURRENCY = 120, 4


@pytest.fixture
def start(server, tmp_path):
    """Starts caption-images, with a cache of the given name."""
    files = write_pictures(tmp_path / "pictures", N, size=(6, 5))
    index = write_index(
        tmp_path / "i.parquet", files, ["train"] * N, [None] * N, ["a", "b"]
    )
    # Texts of 4 words fit.
    changes = {"engine": "openai", "model": ChatServer.model, "max_new_tokens": 4}
    settings = changed(SETTINGS, batch_size=CONCURRENCY, **changes)

    def start(name):
        output = tmp_path / f"{name}.parquet"
        arguments = command(index, settings, output, prompt="See?")
        arguments[0] = Path(sys.executable).with_name("latteclip")  # with its processes
        options = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_interrupts}
        return subprocess.Popen(arguments, env=dict(os.environ), **options), output

    return start


def finish(process, output):
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return read(output)


def stop_after(process, output, server, n, number):
    """Send the signal once the server has answered n more requests; the exit status.

    No process that decodes images outlives it.
    """
    wanted = server.answered + n

    def slow(*_):
        """Take longer from there on, so that the run does not end before the signal."""
        time.sleep(1.0 if server.answered >= wanted else 0.02)

    server.fail = slow
    while server.answered < wanted and process.poll() is None:
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate()
    server.fail = lambda *_: None
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert not output.exists()
    assert list(output.parent.glob(f".{output.name}*")) == []
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_asks_again_what_was_under_way_alone(start, server, number):
    unbroken = finish(*start("unbroken"))
    assert len(server.requests) == N
    status = stop_after(*start("broken"), server, N // 4, number)
    assert status == (143 if number == signal.SIGTERM else -number)
    assert finish(*start("broken")) == unbroken
    assert len(server.requests) - N <= N + CONCURRENCY  # answers may be paid
