import logging
import os
import re
import signal

import pytest
from PIL import Image
from support.image_folders import coop, folders, index
from support.processes import status_of_fork
from support.shards import labelled, picture, tar_shard

from latteclip.core.errors import UserError
from latteclip.data import images, index_images
from latteclip.data.index_images import CACHE


@pytest.fixture
def root(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    return folders(tmp_path / "d")


def test_a_limit_draws_the_same_images_evenly_from_each_split(root, tmp_path):
    names = ("cat", "dog")
    rows = [[f"{name}/{i}.jpg", c, name] for c, name in enumerate(names) for i in range(9)]
    coop(root, rows, [["cat/9.jpg", 0, "cat"], ["dog/9.jpg", 1, "dog"]])
    split = {"kind": "coop", "file": "split.json", "limit": 6}
    found, classnames, _ = index(root, tmp_path, **split)
    drawn = [row["image_id"] for row in found if row["split"] == "train"]
    assert drawn == [f"{name}/{i}.jpg" for name in names for i in (0, 3, 6)]
    assert sum(row["split"] == "test" for row in found) == 2
    assert classnames == ["cat", "dog"]
    assert index(root, tmp_path, **split)[0] == found


# Broken images.


def broken(root, n=150):
    """Two broken images among `n` good ones of each class: fewer than 1 %."""
    folders(root, n=n)
    half = root / "cat" / "half.jpg"
    Image.effect_noise((60, 60), 90).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (root / "dog" / "text.jpg").write_text("no image at all")
    return root


def test_a_few_broken_images_are_listed_and_left_out(root, tmp_path, caplog):
    rows, _, corrupt = index(broken(root), tmp_path)
    assert [row["image_id"] for row in corrupt] == ["cat/half.jpg", "dog/text.jpg"]
    assert all(row["split"] in ("train", "test") and row["reason"] for row in corrupt)
    assert len(rows) == 300
    assert not {row["image_id"] for row in corrupt} & {row["image_id"] for row in rows}
    assert "cat/half.jpg" in caplog.text


def test_too_many_broken_images_are_an_error(root, tmp_path):
    with pytest.raises(UserError, match=r"half\.jpg.*text\.jpg.*max_corrupt"):
        index(broken(root, n=10), tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [index_images.CACHE]
    (root / "dog" / "text.jpg").unlink()
    assert len(index(root, tmp_path)[2]) == 1  # the share is rounded up


# The cache of decoded images.


def spoil(*files):
    """Break images so that nobody notices who does not decode them: size and time stay."""
    for file in files:
        state = file.stat()
        file.write_bytes(bytes(state.st_size))
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def outputs(folder):
    files = (file for file in (folder / "out").iterdir() if file.name != CACHE)
    return {file.name: file.read_bytes() for file in files}


def test_what_was_decoded_is_not_decoded_again(root, tmp_path, caplog):
    index(root, tmp_path)
    (root / "cat" / "00.jpg").write_bytes(picture(1))  # in the midst of the others
    (root / "cat" / "3.jpg").write_bytes(picture(2, size=(20, 30)))
    (root / "dog" / "9.jpg").unlink()
    index(root, tmp_path / "fresh")
    spoil(*(root / "dog").iterdir())
    _, _, corrupt = index(root, tmp_path)
    assert not corrupt and "18 of 20 images are in the cache" in caplog.text
    assert outputs(tmp_path) == outputs(tmp_path / "fresh")


def test_a_run_that_was_killed_goes_on(root, tmp_path, caplog, monkeypatch):
    """As one without power, after it cached some images."""
    put, pieces = index_images.write_cache, []

    def killing(*args):
        put(*args)
        pieces.append(args)
        if len(pieces) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    index(root, tmp_path / "fresh")
    with monkeypatch.context() as patch:
        patch.setattr(images, "CHUNK", 1)
        patch.setattr(index_images, "BATCH", 3)
        patch.setattr(index_images, "write_cache", killing)
        assert status_of_fork(index, root, tmp_path) == -signal.SIGKILL
    spoil(*(root / "cat" / f"{number}.jpg" for number in range(10)))
    _, _, corrupt = index(root, tmp_path)
    assert not corrupt and "12 of 20 images are in the cache" in caplog.text
    assert outputs(tmp_path) == outputs(tmp_path / "fresh")


def test_images_of_a_shard_count_as_long_as_the_shard_is_as_it_was(root, tmp_path, caplog):
    for part in ("test", "train"):
        tar_shard(root / f"{part}.tar", labelled(range(20)))
    (root / "classes.txt").write_text("cat\ndog")
    index(root, tmp_path, kind="webdataset")
    tar_shard(root / "train.tar", labelled(range(10)))
    rows, _, corrupt = index(root, tmp_path, kind="webdataset")
    assert len(rows) == 30 and not corrupt
    assert "20 of 30 images are in the cache" in caplog.text


def test_a_damaged_cache_is_named(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CACHE).write_bytes(b"no database" * 999)
    with pytest.raises(UserError, match=re.escape(CACHE)):
        index(root, tmp_path)
