"""A run that is killed ends with what an unbroken run gives."""

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

from latteclip.cli import main

N, CONCURRENCY = 120, 4


@pytest.fixture
def arguments(server, tmp_path):
    """Of caption-images, with a cache and an output of the given name."""
    files = write_pictures(tmp_path / "pictures", N, size=(6, 5))
    index = write_index(
        tmp_path / "i.parquet", files, ["train"] * N, [None] * N, ["a", "b"]
    )
    # Texts of 4 words fit.
    changes = {"engine": "openai", "model": ChatServer.model, "max_new_tokens": 4}
    settings = changed(SETTINGS, batch_size=CONCURRENCY, **changes)
    return lambda name: command(index, settings, tmp_path / name, prompt="See?")


def run(words, output):
    assert main.main(words) == 0
    return read(output)


def stop_after(words, output, server, n, number):
    """Send the signal once the server has answered n requests; the exit status and what is printed.

    No process that decodes images outlives it.
    """
    process = subprocess.Popen(
        [Path(sys.executable).with_name("latteclip"), *words],  # with its own processes
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )
    wanted = server.answered + n

    def slow(*_):
        """Take longer from there on, so that the run does not end before the signal."""
        time.sleep(1.0 if server.answered >= wanted else 0.02)

    server.fail = slow
    while server.answered < wanted and process.poll() is None:
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, printed = process.communicate()
    server.fail = lambda *_: None
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert not output.exists()
    assert list(output.parent.glob(f".{output.name}*")) == []
    return process.returncode, printed.decode()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_asks_again_what_was_under_way_alone(
    arguments, server, tmp_path, number
):
    unbroken = run(arguments("unbroken"), tmp_path / "unbroken")
    assert len(server.requests) == N
    broken = arguments("broken"), tmp_path / "broken"
    status, printed = stop_after(*broken, server, N // 4, number)
    assert status == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert f"of at most {CONCURRENCY} requests were under way" in printed
    assert run(*broken) == unbroken
    assert len(server.requests) - N <= N + CONCURRENCY  # answers may be paid
