import errno
import json
import os
import pickle
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import ROOT

from latteclip.captions import answer_files, answers
from latteclip.captions.answers import Answer, AnswerStore
from latteclip.core.hashing import digest


def name(number):
    return digest(str(number))[:32]


def answer(number):
    return Answer(f'text "{number}"\nmore \u00e9', "stop", number)


def fill(folder, numbers):
    with AnswerStore(folder) as store:
        for number in numbers:
            store.add(name(number), answer(number), "engine 1")


def held(folder, numbers):
    with AnswerStore(folder) as store:
        return [number for number in numbers if store.get(name(number)) is not None]


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_answer_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "today", lambda: "2026-02-03")
    fill(tmp_path, range(5))
    with AnswerStore(tmp_path) as store:
        kept = store.get(name(3))
        assert kept.answer == answer(3)
        assert (kept.engine, kept.date) == ("engine 1", "2026-02-03")
        assert len(store) == 5
        assert name(4) in store
        assert name(5) not in store
        assert store.get(name(5)) is None


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_last_line_costs_that_answer_alone(tmp_path, cut):
    fill(tmp_path, range(4))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert held(tmp_path, range(4)) == [0, 1, 2]


def test_a_changed_byte_costs_that_answer_alone(tmp_path):
    fill(tmp_path, range(4))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'text \\"2', b'test \\"2'))
    assert held(tmp_path, range(4)) == [0, 1, 3]


def test_processes_write_side_by_side(tmp_path):
    with AnswerStore(tmp_path) as one, AnswerStore(tmp_path) as other:
        for number in range(10):
            (one if number % 2 else other).add(name(number), answer(number), "engine")
    assert held(tmp_path, range(10)) == list(range(10))
    assert len(parts(tmp_path)) == 2


def test_many_closed_parts_become_one_without_loss(tmp_path):
    for number in range(answers.MAX_PARTS + 1):
        fill(tmp_path, [number, number + 1])
    assert len(parts(tmp_path)) == 1
    assert held(tmp_path, range(answers.MAX_PARTS + 2)) == list(range(answers.MAX_PARTS + 2))
    [path] = tmp_path.iterdir()
    assert len(path.read_text().splitlines()) == answers.MAX_PARTS + 2  # each once


def test_an_open_part_is_left_alone_unless_it_was_abandoned(tmp_path):
    for number in range(answers.MAX_PARTS):
        fill(tmp_path, [number])
    abandoned = tmp_path / "a.open.jsonl"
    (tmp_path / parts(tmp_path)[0]).rename(abandoned)
    old = time.time() - 2 * answer_files.ABANDONED
    with AnswerStore(tmp_path) as running:
        running.add(name(90), answer(90), "engine")
        fill(tmp_path, [91])
        assert len(parts(tmp_path)) == answers.MAX_PARTS + 2
        os.utime(abandoned, (old, old))
        fill(tmp_path, [92])
        assert len(parts(tmp_path)) == 2  # the running one, and all others in one
        running.add(name(93), answer(93), "engine")
    numbers = [*range(answers.MAX_PARTS), 90, 91, 92, 93]
    assert held(tmp_path, numbers) == numbers


def test_keys_tell_a_worker_what_is_held(tmp_path):
    fill(tmp_path, range(30))
    with AnswerStore(tmp_path) as store:
        held = pickle.loads(pickle.dumps(store.held()))
        store.add(name(40), answer(40), "engine")
        assert [number for number in range(60) if name(number) in held] == list(range(30))
    sort(tmp_path)
    with AnswerStore(tmp_path) as store:
        store.add(name(50), answer(50), "engine")
        held = pickle.loads(pickle.dumps(store.held()))
        known = [number for number in range(60) if name(number) in held]
        assert known == [*range(30), 40, 50]
        [path] = tmp_path.glob("*.sorted.jsonl")
        path.unlink()  # by a job that tidied up
        assert [number for number in range(60) if name(number) in held] == [50]


def sort(folder):
    """Let a run put all parts into one."""
    with AnswerStore(folder) as store:
        store._dropped.append("so that it is tidied up")
    [path] = folder.iterdir()
    assert path.name.endswith(".sorted.jsonl")
    return path


@pytest.mark.parametrize("n", [0, 1, 40])
def test_a_sorted_part_is_bisected(tmp_path, n):
    """It finds each answer, and no other, in a few steps, and is not read on opening."""
    fill(tmp_path, [10**6])
    fill(tmp_path, range(n))
    path = sort(tmp_path)
    order = [json.loads(line)["digest"] for line in path.read_text().splitlines()]
    assert order == sorted(map(name, [*range(n), 10**6]))
    with AnswerStore(tmp_path) as store:
        assert store._places == {}
        assert held_in(store, [*range(n), 10**6]) == [*range(n), 10**6]
        assert not any(name(number) in store for number in range(n, n + 200))
        assert len(store) == n + 1


def held_in(store, numbers):
    found = {number: store.get(name(number)) for number in numbers}
    assert all((name(number) in store) == (kept is not None) for number, kept in found.items())
    assert all(kept.answer == answer(number) for number, kept in found.items() if kept)
    return [number for number, kept in found.items() if kept]


def test_any_change_of_a_line_of_a_sorted_part_costs_that_answer_alone(tmp_path):
    fill(tmp_path, range(40))
    path = sort(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        lost = json.loads(line)["digest"]
        for other in (
            b"",
            b"x",
            b"\xff" * 5000 + b"\n",
            line[:-1],
            line.replace(b'"stop"', b'"stap"'),
        ):
            path.write_bytes(b"".join([*lines[:number], other, *lines[number + 1 :]]))
            # Without its end a line takes the next one along.
            joined = lines[number + 1 : number + 2] if other in (b"x", line[:-1]) else []
            gone = {lost, *(json.loads(each)["digest"] for each in joined)}
            with AnswerStore(tmp_path) as store:
                assert held_in(store, range(40)) == [i for i in range(40) if name(i) not in gone]
                store._dropped.clear()


WRITER = """
import sys, time
from latteclip.captions.answers import (Answer, AnswerStore)
from latteclip.core.hashing import digest
with AnswerStore(sys.argv[1]) as store:
    for number in range(100000):
        store.add(digest(str(number))[:32], Answer("x" * 300, "stop", 1), "engine")
        print(number, flush=True)
"""


def test_what_a_killed_process_reported_is_held(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    reported = []
    while len(reported) < 500:
        reported.append(int(process.stdout.readline()))
    process.kill()
    rest = process.stdout.read().split("\n")
    process.wait()
    reported += [int(line) for line in rest[:-1]]
    assert held(tmp_path, reported) == reported


def test_a_disk_that_fails_in_the_background_is_told_at_the_next_answer(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(answer_files, "SYNC_SECONDS", 0.01)
    monkeypatch.setattr(os, "fsync", full)
    part = answer_files.Part(tmp_path)
    part.append(b"x")
    part._syncer.join(60)
    with pytest.raises(OSError, match="quota"):
        part.append(b"x")


def line(**changes):
    """A whole line of a store, with changed values; a value of ... is left out."""
    values = {"digest": name(0), "text": "a dot", "finish_reason": "stop", "n_tokens": 2}
    values |= {"engine": "engine 1", "date": "2026-02-03", **changes}
    return answer_files.line_of({key: v for key, v in values.items() if v is not ...})


def test_an_answer_that_cannot_be_used_is_not_kept(tmp_path):
    with AnswerStore(tmp_path) as store:
        assert store.add(name(1), Answer("\udfff", "stop", 1), "engine")
        assert store.add(name(1), Answer("a", "stop", 2**31), "engine")
        assert name(1) not in store
    assert parts(tmp_path) == []


@settings(deadline=None)
@given(st.data())
def test_whatever_happens_to_a_part_each_answer_is_held_as_it_was_or_not_at_all(
    tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("store")
    numbers = range(4)
    whole = b"".join(
        line(digest=name(n), text=answer(n).text, n_tokens=n, engine="engine") for n in numbers
    )
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    (folder / "part.jsonl").write_bytes(content)
    with AnswerStore(folder) as store:
        for number in numbers:
            found = store.get(name(number))
            assert found is None or found.answer == answer(number)
