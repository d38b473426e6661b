"""A run that is killed again and again ends with what an unbroken run gives."""

import dataclasses
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest
from support.chat_server import MODEL, serving
from support.checkout import hear_interrupts
from support.commands import SETTINGS, command, read
from support.tiny import write_index, write_pictures

from latteclip.captions.answers import AnswerStore

N, KILLS, CONCURRENCY = 150, 5, 4
TRIED = 2  # requests before the work: about a black picture and about none


@pytest.fixture
def server(monkeypatch):
    with serving() as server:
        server.pause = 0.01
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


@pytest.fixture
def start(server, tmp_path):
    """Starts caption-images, which keeps what it is told in a store of the given name."""
    files = write_pictures(tmp_path / "pictures", N, size=(6, 5))
    index = write_index(tmp_path / "i.parquet", files, ["train"] * N, [None] * N, ["a", "b"])
    settings = dataclasses.replace(
        SETTINGS, engine="openai", model=MODEL, concurrency=CONCURRENCY, max_new_tokens=4
    )

    def start(name):
        output = tmp_path / f"{name}.parquet"
        return subprocess.Popen(
            # Texts of 4 words fit, "What do you see? ..." does not: such are asked twice.
            command(index, settings, output, "--store", tmp_path / name, prompt="See?"),
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
            preexec_fn=hear_interrupts,
        ), output

    return start


def finish(started):
    process, output = started
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return read(output)


def stop_after(started, server, n, number, pause):
    """Send the signal once the server has answered n more requests and a moment has passed."""
    process, output = started
    wanted = server.answered + n
    while server.answered < wanted and process.poll() is None:
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(number)
    process.communicate()
    assert not output.exists()
    assert list(output.parent.glob(f".{output.name}*")) == []
    return process.returncode


@pytest.mark.slow
def test_killed_at_random_points_a_run_loses_nothing_and_asks_nothing_twice(
    start, server, tmp_path
):
    unbroken = finish(start("unbroken"))
    asked = len(server.requests)
    assert asked == N + TRIED
    rng = random.Random(0)
    for _ in range(KILLS):
        started = start("broken")
        status = stop_after(started, server, rng.randint(0, 18), signal.SIGKILL, rng.random() / 50)
        assert status == -signal.SIGKILL
    assert finish(start("broken")) == unbroken
    # What a killed run was still waiting for is all that is asked again.
    assert len(server.requests) - asked <= N + TRIED + KILLS * (CONCURRENCY + TRIED)
    lines = [
        line.split('"')[7]
        for path in (tmp_path / "broken").iterdir()
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]
    assert max(Counter(lines).values()) == 1
    with AnswerStore(tmp_path / "broken") as store:
        assert len(store) == N


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_stopped_run_ends_at_once_and_the_next_goes_on(start, server, tmp_path, number, status):
    server.pause = 0.05
    assert stop_after(start("stopped"), server, 30, number, 0.0) == status
    assert [path for path in (tmp_path / "stopped").iterdir() if ".open." in path.name] == []
    with AnswerStore(tmp_path / "stopped") as store:
        held = len(store)
    assert held >= 30 - TRIED - CONCURRENCY
    server.pause = 0.0
    before = len(server.requests)
    finish(start("stopped"))
    assert len(server.requests) - before == TRIED + N - held
