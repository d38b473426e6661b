import io
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.shards import labelled, parquet_shard, picture, tar_shard
from support.tiny import ROOT, write_pictures

from latteclip.config.sections.split import SplitSection
from latteclip.core.errors import UserError
from latteclip.data import loader as loading
from latteclip.data.loader import (
    ImageFiles,
    batches,
    bounded,
    in_order,
    joined,
    loader,
    watched,
)
from latteclip.data.splits import read_split

CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_the_order_of_their_keys(tmp_path, threads):
    files = ImageFiles(write_pictures(tmp_path, 4), lambda image: torch.tensor(image.size))
    found = list(batches(files, [[2, 0], [3], [1, 3]], CPU, threads))
    assert [indices.tolist() for indices, _ in found] == [[2, 0], [3], [1, 3]]
    assert found[0][1].tolist() == [[70, 64], [70, 64]]


def test_images_are_on_the_device_of_the_model_whatever_its_kind(tmp_path):
    """A device of no memory stands for Apple's GPU."""
    files = ImageFiles(write_pictures(tmp_path, 2), lambda image: torch.zeros(3, 8, 8))
    [(indices, images)] = batches(files, [[1, 0]], torch.device("meta"), 1)
    assert indices.tolist() == [1, 0]
    assert images.shape == (2, 3, 8, 8) and images.device.type == "meta"


def test_a_batch_is_decoded_while_the_one_before_it_is_in_use(tmp_path):
    decoded = [threading.Event() for _ in range(6)]

    class Noting(ImageFiles):
        def __getitem__(self, index):
            decoded[index].set()
            return index, torch.zeros(1)

    found = batches(Noting([""] * 6, None), in_order(6, 2), CPU, threads=1)
    next(found)
    assert all(event.wait(60) for event in decoded[:4])
    assert not any(event.is_set() for event in decoded[4:])


def test_what_cannot_be_decoded_ends_the_threads(tmp_path):
    before = threading.active_count()
    files = ImageFiles(
        [*write_pictures(tmp_path, 3), "nowhere.png"], lambda image: torch.zeros(1)
    )
    with pytest.raises(UserError, match=r"nowhere\.png"):
        list(batches(files, in_order(4, 2), CPU, threads=2))
    assert threading.active_count() == before


def test_forked_workers_read_shards(tmp_path):
    """Though this process read of them before: its threads are not theirs."""
    tar = tar_shard(tmp_path / "train.tar", labelled(range(40), form="PNG"))
    contents = [picture(n, form="PNG") for n in range(40)]
    rows = parquet_shard(tmp_path / "train.parquet", contents, [0] * 40, ["a", "b"], rows=7)
    (tmp_path / "classes.txt").write_text("a\nb")
    wanted = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    for kind, shard in (("webdataset", tar), ("parquet", rows)):
        _, split = read_split(
            tmp_path, SplitSection(kind=kind, lists={"train": shard.name})
        )
        files = ImageFiles([str(tmp_path / item.path) for item in split.items], np.asarray)
        np.testing.assert_array_equal(files[3][1], wanted[3])
        keys = [range(start, 40, 8) for start in range(8)]
        for (indices, images), _ in loader(
            files, keys, workers=2, pinned=False, collate=_together
        ):
            for index, image in zip(indices, images, strict=True):
                np.testing.assert_array_equal(image, wanted[index])


def _together(samples):
    indices, images = zip(*samples, strict=True)
    return torch.tensor(indices), torch.from_numpy(np.stack(images))


def test_workers_make_parts_of_large_batches_which_are_joined_again(monkeypatch):
    class Pictures(ImageFiles):
        def __getitem__(self, index):
            return (index, f"{index}.jpg"), torch.full((3, 8, 8), float(index))

    monkeypatch.setattr(loading, "PART", 3 * 3 * 8 * 8 * 4)  # bytes of three pictures
    files, keys = Pictures([""] * 20, None), [[7, 2, 9, 4, 1, 3, 11], [5], [6, 8, 10]]
    options = {"pinned": False, "item_bytes": 3 * 8 * 8 * 4}
    parts, ends = zip(*loader(files, keys, workers=2, **options), strict=True)
    flags, images = zip(*parts, strict=True)
    found = [each[:, 0, 0, 0].tolist() for each in images]
    assert found == [[7, 2], [9, 4], [1, 3, 11], [5], [6, 8, 10]]
    assert ends == (False, False, True, True, True)
    indices, names = joined(flags[:3])
    assert indices.tolist() == keys[0] and names == [f"{index}.jpg" for index in keys[0]]
    assert all(is_last for _, is_last in loader(files, keys, workers=0, **options))


# Worker processes: batches of 3 MiB each by two of them; what item 9 does is put in.
LOADING = """
import os, signal, time, torch
from latteclip.core import errors
from latteclip.core.errors import UserError
from latteclip.data import loader
from latteclip.data.loader import watched

class Pictures:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 9:
            {act}
        return index, torch.full((3, 256, 256), float(index))

keys = [range(start, start + 4) for start in range(0, 32, 4)]
options = {{"workers": 2, "pinned": False, "item_bytes": {item_bytes}}}
try:
    try:
        n = 0
        for (_, images), is_last in watched(loader.loader(Pictures(), keys, **options)):
            n += len(images)
            if is_last:
                print(n, flush=True)
                n = 0
    except UserError as error:
        print(error)
except RuntimeError as error:  # raised by a signal, and not while a batch was waited for
    print(errors.worker_failure(error))
"""
KILL = "os.kill(os.getpid(), signal.{}); time.sleep(60)"


def printed(act, *before, item_bytes=0):
    """What LOADING prints; it must come to its end."""
    run = subprocess.run(
        [*before, sys.executable, "-c", LOADING.format(act=act, item_bytes=item_bytes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def in_a_container(shm, **options):
    """The same where /dev/shm has a size."""
    mount = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    return printed("pass", *command, **options)


def test_a_small_shared_memory_is_one_sentence():
    *_, said = in_a_container("4m")
    assert "/dev/shm" in said


@pytest.mark.parametrize("shm", ["4m", "28m"])
def test_in_any_shared_memory_the_workers_are_as_many_as_it_has_room_for(shm):
    assert in_a_container(shm, item_bytes=3 * 256 * 256 * 4) == ["4"] * 8


@given(st.integers(1, 256), st.integers(1, 10**9), st.integers(0, 10**12))
def test_parts_ahead_take_a_quarter_of_the_free_shared_memory_and_4_gib_at_most(
    wanted, size, free
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        workers, ahead, items = bounded(wanted, size)
    room = min(free / 4, 2**32)
    assert workers == 0 or (ahead * workers + 1) * items * size <= room
    assert workers == wanted or (workers + 2) * size > room  # no more would fit
    assert items == 1 or items * size <= 2**26


@pytest.mark.parametrize(
    ("number", "said"), [("SIGBUS", "/dev/shm"), ("SIGKILL", "memory")]
)
def test_a_worker_that_is_killed_is_one_sentence(number, said):
    *_, last = printed(KILL.format(number))
    assert said in last


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_a_worker_that_is_gone_before_it_counts_as_dead_is_one_sentence(error):
    def broken():
        yield 1
        raise error

    found = watched(broken())
    assert next(found) == 1
    with pytest.raises(UserError, match=r"threads"):
        next(found)


def test_bad_input_that_a_worker_finds_ends_the_process_too():
    said = "Image 9 cannot be decoded."
    assert printed(f"raise UserError({said!r})")[-1] == said
