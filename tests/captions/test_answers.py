import errno

import pytest
from support.captioning import SETTINGS, changed

from latteclip.captions.answers import COMMIT_ANSWERS, AnswerCache, digest, identity
from latteclip.captions.engine import Response
from latteclip.captions.questions import Layout, Request
from latteclip.core import files
from latteclip.core.errors import UserError


def name(number):
    return files.digest(str(number))[:32]


def answer(number):
    return Response(f'text "{number}"\nmore \u00e9', "stop", number, n_read=9)


def fill(folder, numbers, shard="1-of-1"):
    with AnswerCache(folder, shard) as cache:
        for number in numbers:
            cache.add(name(number), answer(number))


def cached(folder, numbers, shard="1-of-1"):
    with AnswerCache(folder, shard) as cache:
        return [n for n in numbers if cache.get(name(n)) == answer(n)]


def test_a_job_finds_answers_of_other_splits_and_writes_its_file_alone(tmp_path):
    fill(tmp_path, range(5))
    fill(tmp_path, [5], "1-of-2")
    whole = (tmp_path / "1-of-1.sqlite").read_bytes()
    fill(tmp_path, [6], "2-of-2")
    assert cached(tmp_path, range(8), "2-of-2") == [0, 1, 2, 3, 4, 6]  # 5: of another shard
    assert cached(tmp_path, range(8), "3-of-3") == list(range(7))
    assert (tmp_path / "1-of-1.sqlite").read_bytes() == whole
    # No log lies beside.
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".sqlite"] * 4


def test_two_runs_at_once_lose_nothing(tmp_path):
    with AnswerCache(tmp_path) as one, AnswerCache(tmp_path) as other:
        for number in range(3 * COMMIT_ANSWERS):
            (one if number % 2 else other).add(name(number), answer(number))
            other.add(name(0), answer(0))
    assert cached(tmp_path, range(3 * COMMIT_ANSWERS)) == list(range(3 * COMMIT_ANSWERS))


def test_a_full_disk_is_one(tmp_path):
    cache = AnswerCache(tmp_path)
    [file] = cache._files.values()
    file.execute("PRAGMA max_page_count = 3")
    for number in range(COMMIT_ANSWERS - 1):
        cache.add(name(number), Response("x" * 2000, "stop", number))
    with pytest.raises(OSError, match=r"1-of-1\.sqlite") as caught:
        cache.commit()
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("start", "shard"), [(0, "1-of-1"), (4096, "1-of-2")])
def test_a_damaged_file_is_one_sentence(tmp_path, start, shard):
    numbers = range(2000)
    fill(tmp_path, numbers)
    path = tmp_path / "1-of-1.sqlite"
    content = bytearray(path.read_bytes())
    content[start : start + 200_000] = bytes(200_000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"1-of-1\.sqlite.*delete it"):
        cached(tmp_path, numbers, shard)
    path.unlink()
    assert cached(tmp_path, numbers, shard) == []


CHANGES = [
    {"model": "other/model"},
    {"revision": "def"},
    {"dtype": "bfloat16"},
    {"quantization": "awq"},
    {"max_new_tokens": 8},
]


def test_whatever_changes_the_answer_changes_the_digest():
    captioners = [SETTINGS, *(changed(SETTINGS, **change) for change in CHANGES)]
    identities = [identity(each, Layout(), scoring=False) for each in captioners]
    identities.append(identity(SETTINGS, Layout(max_side=100), scoring=False))
    request = Request(0, (), "What?", checksums=[b"picture"])
    assert len({digest(request, each) for each in identities}) == len(CHANGES) + 2
