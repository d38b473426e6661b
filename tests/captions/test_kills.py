"""A run that is killed again and again ends with what an unbroken run gives."""

import dataclasses
import os
import random
import signal
import subprocess
import time

import pytest
from support.chat_server import MODEL, serving
from support.checkout import hear_interrupts
from support.commands import SETTINGS, command, read
from support.tiny import write_index, write_pictures

from latteclip.captions.answer_cache import COMMIT_ANSWERS, AnswerCache

N, KILLS, CONCURRENCY = 600, 5, 4


@pytest.fixture
def server(monkeypatch):
    with serving() as server:
        server.pause = 0.002
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


def answered(folder):
    """How many requests have an answer in the cache."""
    with AnswerCache(folder) as cache:
        return len(cache.snapshot().keys)


@pytest.mark.slow
def test_killed_at_random_points_a_run_loses_the_answers_since_its_last_commit_alone(
    start, server, tmp_path
):
    unbroken = finish(start("unbroken"))
    asked = len(server.requests)
    assert asked == N
    rng = random.Random(0)
    for _ in range(KILLS):
        started, n = start("broken"), rng.randint(0, COMMIT_ANSWERS + 50)
        before = server.answered
        status = stop_after(started, server, n, signal.SIGKILL, rng.random() / 50)
        if status == 0:  # it had ended
            break
        assert status == -signal.SIGKILL
        assert before <= server.answered
    assert finish(start("broken")) == unbroken
    # The answers since the last commit, and those under way, are all that is asked again.
    assert len(server.requests) - asked <= N + KILLS * (COMMIT_ANSWERS + CONCURRENCY)
    assert answered(tmp_path / "broken") == N


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_stopped_run_ends_at_once_and_the_next_goes_on(start, server, tmp_path, number, status):
    server.pause = 0.05
    assert stop_after(start("stopped"), server, 30, number, 0.0) == status
    n = answered(tmp_path / "stopped")
    assert n >= 30 - CONCURRENCY
    server.pause = 0.0
    before = len(server.requests)
    finish(start("stopped"))
    assert len(server.requests) - before == N - n
