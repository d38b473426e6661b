import base64
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny import ROOT, write_pictures

from latteclip.captions.pictures import Layout, grid
from latteclip.captions.requests import Identity, digest, digest_of_images
from latteclip.captions.runner import CHUNKS, PIXELS, Preparer, Task, show, workers
from latteclip.core.errors import UserError

CHUNK = CHUNKS[0]  # of pictures as large as these are said to be


def identity(**layout):
    return Identity("m", None, "auto", None, 77, Layout(**layout))


def preparer(*, as_urls=False, held=(), **layout):
    return Preparer(identity(**layout), as_urls, held)


def prepare(tasks, n=2, **options):
    with workers(preparer(**options), n, PIXELS) as pool:
        return list(pool.in_order(tasks))


def decoded(url):
    head, _, data = url.partition(",")
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 11)


def test_tasks_come_back_in_order_with_their_pictures(files):
    tasks = [Task(10 + number, [file], "?") for number, file in enumerate(files)]
    prepared = prepare(tasks)
    assert [item.task for item in prepared] == tasks
    for item, file in zip(prepared, files, strict=True):
        [picture] = item.pictures
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(file)))
        assert item.image_digests == digest_of_images([Path(file).read_bytes()])


def test_workers_say_whether_they_are_behind(files):
    with workers(preparer(), 1, PIXELS) as pool:

        def tasks():
            yield from (Task(n, [files[0]], "?") for n in range(CHUNK))
            [(_, first)] = pool._waiting
            first.result()
            [worker] = pool._pool._processes
            os.kill(worker, signal.SIGSTOP)
            stopped.append(worker)
            yield Task(CHUNK, [files[1]], "?")

        stopped = []
        prepared = pool.in_order(tasks())
        next(prepared)
        assert not pool.are_behind()
        for _ in range(CHUNK - 1):
            next(prepared)
        assert pool.are_behind()
        os.kill(stopped[0], signal.SIGCONT)
        assert next(prepared).task.key == CHUNK
        assert not pool.are_behind()


def test_what_is_held_is_identified_but_not_decoded(files):
    images = [digest_of_images([Path(file).read_bytes()]) for file in files]
    held = [digest(image, 1, "?", identity()) for image in images[:4]]
    prepared = prepare([Task(n, [f], "?") for n, f in enumerate(files)], held=held)
    assert [item.pictures is None for item in prepared] == [n < 4 for n in range(11)]
    assert [item.image_digests for item in prepared] == images


def test_a_large_jpeg_looks_the_same_scaled_down_while_it_is_decoded(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = smooth.resize((1600, 1200), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    [item] = prepare([Task(0, [str(tmp_path / "a.jpg")], "?")], max_side=200)
    [picture] = item.pictures
    assert picture.size == (200, 150)
    wanted = smooth.resize((200, 150), Image.Resampling.LANCZOS)
    difference = np.asarray(picture).astype(float) - np.asarray(wanted)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("kind", ["grid", "multi_image"])
def test_four_images_are_one_grid_or_four_pictures(files, kind):
    [item] = prepare([Task(0, files[:4], "?")], kind=kind, canvas=64, gap=4)
    singles = [Image.open(file) for file in files[:4]]
    wanted = [grid(singles, 64, 4)] if kind == "grid" else singles
    assert len(item.pictures) == len(wanted)
    for picture, single in zip(item.pictures, wanted, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(single))


def test_a_server_gets_plain_files_as_they_are_and_others_as_they_are_shown(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    turned = noise.getexif()
    turned[0x0112] = 6
    noise.save(tmp_path / "plain.png")
    noise.save(tmp_path / "plain.jpg", quality=80)
    noise.save(tmp_path / "turned.jpg", exif=turned)
    noise.convert("L").save(tmp_path / "grey.png")
    noise.save(tmp_path / "other.bmp")
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    prepared = prepare([Task(n, [f], "?") for n, f in enumerate(files)], as_urls=True)
    for item, file in zip(prepared, files, strict=True):
        [url] = item.pictures
        head, pixels = decoded(url)
        [shown] = show(Layout(), [file], [Path(file).read_bytes()])
        assert np.array_equal(pixels, np.asarray(shown)), file
        kind = "jpeg" if file.endswith("plain.jpg") else "png"
        assert head == f"data:image/{kind};base64"
        if Path(file).stem == "plain":
            assert base64.b64decode(url.partition(",")[2]) == Path(file).read_bytes()


@pytest.mark.parametrize("kind", ["single", "grid", "multi_image"])
@pytest.mark.parametrize("turned", [None, 6])
def test_a_server_is_told_the_pixels_alone(tmp_path, kind, turned):
    """And the digest, by which kept answers are found, stays that of the file."""
    tags = Image.Exif()
    tags[0x010E] = "48.2082 N"
    tags.get_ifd(0x8825)[29] = "48.2082 N"
    if turned:
        tags[0x0112] = turned
    file = tmp_path / "a.jpg"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    picture.save(file, exif=tags, comment=b"48.2082 N", icc_profile=b"48.2082 N")
    files = [str(file)] * (1 if kind == "single" else 4)
    [item] = prepare([Task(0, files, "?")], as_urls=True, kind=kind, canvas=64, gap=4)
    assert item.image_digests == digest_of_images([file.read_bytes()] * len(files))
    contents = [file.read_bytes()] * len(files)
    shown = show(Layout(kind, 64, 4), files, contents)
    for url, seen in zip(item.pictures, shown, strict=True):
        assert b"48.2082 N" not in base64.b64decode(url.partition(",")[2])
        assert np.array_equal(decoded(url)[1], np.asarray(seen))


@pytest.mark.parametrize("as_urls", [False, True])
def test_an_image_that_is_no_image_is_named(tmp_path, as_urls):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png"):
        prepare([Task(0, [str(tmp_path / "a.png")], "?")], as_urls=as_urls)


def test_workers_import_nothing_heavy():
    heavy = "{'torch', 'vllm', 'pandas'}"
    code = f"import sys, latteclip.captions.runner; print({heavy} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout.strip() == "set()", run.stderr


PARENT = """
import sys, time
from latteclip.captions.runner import (Preparer, Task, workers)
from latteclip.captions.pictures import Layout
from latteclip.captions.requests import Identity
if __name__ == "__main__":
    identity = Identity("m", None, "auto", None, 77, Layout())
    pool = workers(Preparer(identity, False, ()), 2, 64 * 64)
    next(pool.in_order(Task(n, [sys.argv[1]], "?") for n in range(1000)))
    print(*pool._pool._processes, flush=True)
    time.sleep(60)
"""


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_workers_do_not_outlive_a_killed_parent(files, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), files[0]],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        if not any(map(is_running, pids)):
            break
        time.sleep(0.05)
    assert not any(map(is_running, pids))
