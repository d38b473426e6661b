import errno
import logging
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from support.image_folders import folders, index
from support.shards import labelled, picture, tar_shard

from latteclip.data import decode_cache
from latteclip.data.index_images import CACHE

# A run that ends like one without power, after it kept some images.
KILLED = """
import os, signal, sys
from pathlib import Path
from support.image_folders import index
from latteclip.data import index_images
index_images.CHUNK, index_images.CACHED_TOGETHER = 1, 3
keep, pieces = index_images._put, []
def killing(*args):
    keep(*args)
    pieces.append(args)
    if len(pieces) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
index_images._put = killing
index(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
def root(tmp_path):
    return folders(tmp_path / "d")


def spoil(*files):
    """Break images so that nobody notices who does not decode them: size and time stay."""
    for file in files:
        state = file.stat()
        file.write_bytes(bytes(state.st_size))
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def outputs(folder):
    return {
        file.name: file.read_bytes() for file in (folder / "out").iterdir() if file.name != CACHE
    }


def test_a_file_system_without_locks_keeps_it_too(root, tmp_path, monkeypatch):
    """SQLite itself would say that the file is locked."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    asked = []
    connect = sqlite3.connect
    monkeypatch.setattr(decode_cache.fcntl, "lockf", refuse)
    monkeypatch.setattr(
        sqlite3, "connect", lambda name, **options: asked.append(name) or connect(name, **options)
    )
    index(root, tmp_path)
    assert asked and all(name.endswith("?nolock=1") for name in asked)
    spoil(*root.rglob("*.jpg"))
    index(root, tmp_path)  # reads what was kept


def test_what_was_decode_cache_is_not_decoded_again(root, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    index(root, tmp_path)
    (root / "cat" / "00.jpg").write_bytes(picture(1))  # in the midst of the others
    (root / "cat" / "3.jpg").write_bytes(picture(2, size=(20, 30)))
    (root / "dog" / "9.jpg").unlink()
    index(root, tmp_path / "fresh")
    spoil(*(root / "dog").iterdir())
    rows, _, corrupt = index(root, tmp_path)
    assert not corrupt and "18 of 20 images are in the cache" in caplog.text
    assert {(row["width"], row["height"]) for row in rows} == {(12, 8), (20, 30)}
    assert outputs(tmp_path) == outputs(tmp_path / "fresh")


def test_a_run_that_was_killed_goes_on(root, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    index(root, tmp_path / "fresh")
    words = [sys.executable, "-c", KILLED, root, tmp_path]
    path = os.pathsep.join(sys.path)
    assert (
        subprocess.run(words, env=os.environ | {"PYTHONPATH": path}).returncode == -signal.SIGKILL
    )
    spoil(*(root / "cat" / f"{number}.jpg" for number in range(10)))
    _, _, corrupt = index(root, tmp_path)
    assert not corrupt and "12 of 20 images are in the cache" in caplog.text
    assert outputs(tmp_path) == outputs(tmp_path / "fresh")


def test_images_of_a_shard_count_as_long_as_the_shard_is_as_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shards = [
        tar_shard(tmp_path / "d" / f"{part}.tar", labelled(range(20))) for part in ("test", "train")
    ]
    (tmp_path / "d" / "classes.txt").write_text("cat\ndog")
    index(tmp_path / "d", tmp_path, kind="webdataset")
    tar_shard(shards[1], labelled(range(10)))
    rows, _, corrupt = index(tmp_path / "d", tmp_path, kind="webdataset")
    assert len(rows) == 30 and not corrupt
    assert "20 of 30 images are in the cache" in caplog.text


def test_a_damaged_cache_counts_for_nothing(root, tmp_path):
    index(root, tmp_path)
    whole = outputs(tmp_path)
    (tmp_path / "out" / CACHE).write_bytes(b"no database" * 999)
    index(root, tmp_path)
    assert outputs(tmp_path) == whole


def test_a_cache_of_other_code_counts_for_nothing(root, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    index(root, tmp_path)
    monkeypatch.setattr(decode_cache, "version", lambda _: "another")
    index(root, tmp_path)
    assert "in the cache" not in caplog.text
