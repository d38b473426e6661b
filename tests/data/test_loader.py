import io
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import square
from support.shards import labelled, parquet_shard, picture, tar_shard
from support.tiny import ROOT, write_pictures

from latteclip.core.errors import WORKER_KILLED
from latteclip.data.images import AHEAD, CHUNK, Workers
from latteclip.data.loader import ImageFiles, batches
from latteclip.data.splits import IndexSettings, read_split

CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_the_order_of_their_keys(tmp_path, monkeypatch, threads):
    files = ImageFiles(write_pictures(tmp_path, 4), lambda image: torch.tensor(image.size))
    monkeypatch.setattr("latteclip.data.loader.PART", 100)  # bytes: parts of six images
    keys = [[2, 0], [3], [1, 3] * 20]
    found = list(batches(files, keys, CPU, threads))
    assert [indices for indices, _ in found] == keys
    assert found[0][1].tolist() == [[70, 64], [70, 64]]
    assert len(found[2][1]) == 40
    assert list(batches(files, [], CPU, threads)) == []


def test_forked_workers_read_shards(tmp_path):
    """Though this process read of them before: its threads are not theirs."""
    tar_shard(tmp_path / "train.tar", labelled(range(40), form="PNG"))
    contents = [picture(n, form="PNG") for n in range(40)]
    parquet_shard(tmp_path / "train.parquet", contents, [0] * 40, ["a", "b"], rows=7)
    (tmp_path / "classes.txt").write_text("a\nb")
    wanted = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    for kind in ("webdataset", "parquet"):
        split = read_split(tmp_path, IndexSettings(kind=kind))
        files = ImageFiles([str(tmp_path / item.path) for item in split.items], np.asarray)
        np.testing.assert_array_equal(files[3][1], wanted[3])
        keys = [range(start, 40, 8) for start in range(8)]
        tensors = ImageFiles(files.paths, lambda image: torch.tensor(np.asarray(image)))
        for indices, images in batches(tensors, keys, CPU, 2):
            for index, image in zip(indices, images, strict=True):
                np.testing.assert_array_equal(image, wanted[index])


# Two worker processes and images of 3/4 MiB; what item 20 does is an argument. A line for each.
LOADING = """
import os, signal, sys, time, torch
from latteclip.core import errors
from latteclip.core.errors import UserError
from latteclip.data import loader

class Pictures:
    def __init__(self, act):
        self.act = act

    def __getitem__(self, index):
        if index == 20:
            exec(self.act)
        return index, torch.full((3, 256, 256), float(index))

keys = [range(start, start + 8) for start in range(0, 64, 8)]
for act in sys.argv[1:]:
    words = []
    try:
        try:
            for _, images in loader.batches(Pictures(act), keys, torch.device("cpu"), 2):
                words.append(str(len(images)))
        except UserError as error:
            words.append(str(error))
    except RuntimeError as error:  # raised by a signal, and not while a batch was waited for
        words.append(errors.worker_failure(error))
    print(*words, flush=True)
"""
KILL = "os.kill(os.getpid(), signal.{}); time.sleep(60)"
WHOLE = " ".join("8" * 8)


def printed(*acts, before=()):
    """The lines that LOADING prints; it must come to its end."""
    run = subprocess.run(
        [*before, sys.executable, "-c", LOADING, *acts],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_CORE, (0, 0)
        ),  # no `core` here
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def in_a_container(shm, *acts):
    """The same where /dev/shm has a size."""
    mount = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    return printed(*acts, before=command)


def test_in_a_small_shared_memory_the_workers_are_as_many_as_it_has_room_for():
    assert in_a_container("4m", "pass") == [WHOLE]


def test_a_shared_memory_that_others_fill_is_one_sentence():
    fill = "open('/dev/shm/x', 'wb').write(bytes(190 * 2**20))"
    whole, filled = in_a_container("200m", "pass", fill)
    assert whole == WHOLE and "/dev/shm" in filled


def test_a_worker_that_is_killed_is_one_sentence():
    """However torch learns of it: from the worker's status or from its socket."""
    lines = printed(KILL.format("SIGBUS"), KILL.format("SIGKILL"))
    assert len(lines) == 2
    # Before it come the batches that were whole.
    assert all(line.endswith(WORKER_KILLED) for line in lines)


# --- the pool of processes that decode ------------------------------------------------------------


def test_only_a_few_tasks_are_taken_at_once():
    taken = []
    with Workers(square, 2) as workers:
        results = workers.in_order(taken.append(number) or number for number in range(1000))
        next(results)
        assert len(taken) <= (2 + AHEAD) * CHUNK


DIE = """
from support.processes import die_among_many_bytes
from latteclip.data import images
images.CHUNK = 1
if __name__ == "__main__":
    with images.Workers(die_among_many_bytes, 2, "{}.jpg".format) as workers:
        list(workers.in_order(range(6)))
"""


def test_where_a_process_dies_the_others_end_too_though_nobody_reads_what_they_give(
    tmp_path,
):
    (tmp_path / "run.py").write_text(DIE)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(r"UserError: .* died near \d\.jpg .*compute\.threads", done.stderr)
