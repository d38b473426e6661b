import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import write_pictures

from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb
from latteclip.data.loader import loader
from latteclip.train import augment, image_cache
from latteclip.train.augment import Augmentation
from latteclip.train.image_cache import (
    ImageCache,
    TrainingImages,
    batches,
    cached_sizes,
    open_cache,
    resize_for_cache,
)

CPU = torch.device("cpu")
SIZE = (70, 64)  # of the pictures that tests write
BYTES = 3 * 71 * 65  # that are set aside for one
TRANSFORM = Augmentation((32, 32), (0.5,) * 3, (0.27,) * 3)
KEYS = [[(0, 4), (0, 1)], [(0, 0), (0, 2)], [(1, 1), (1, 4)], [(1, 3), (1, 0)]]


def natural(width, height):
    """A picture with detail of every size, as photographs have."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3))
    for step in (1, 2, 4, 8, 16, 32, 64):
        grid = rng.integers(0, 256, (height // step + 1, width // step + 1, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(grid).resize((width, height), Image.BICUBIC))
    return Image.fromarray((pixels / 7).astype(np.uint8))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((40, 30), (40, 30)),  # never enlarged
        ((4000, 3000), (133, 100)),
        ((3000, 4000), (100, 133)),
        ((100, 100), (100, 100)),
        ((1000, 200), (150, 100)),  # the middle of a long one
        ((60, 30), (45, 30)),
        ((5000, 1), (2, 1)),
    ],
)
def test_pictures_become_no_larger_than_training_needs(given, wanted):
    assert cached_sizes(np.array([given]), 100).tolist() == [list(wanted)]


def test_the_part_that_is_scaled_down_lies_inside_pictures_of_any_size():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(6000), (5_000, 2))).round().astype(int)
    sides = rng.integers(64, 513, len(sizes))
    for size, side in zip(sizes, sides.tolist(), strict=True):
        width, height = cached_sizes(size[None], side)[0].tolist()
        left, top, right, bottom = image_cache._middle(tuple(size.tolist()), (width, height))
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        # No pixel is lost but at the ends of long pictures, and the shape stays.
        assert min(left, top) < 1e-9 * max(size)
        assert abs((right - left) / width - (bottom - top) / height) < 1e-6


def test_crops_of_shrunken_pictures_are_close_to_those_of_whole_ones(tmp_path):
    """Closer than a crop of the whole picture is to itself with another filter of PIL."""
    path = str(tmp_path / "x.jpg")
    natural(1000, 760).save(path, quality=95)
    side, kept = 100, round(augment.MARGIN * 100)
    small = resize_for_cache(path, kept)
    whole, scale = open_rgb(path), 1000 / small.shape[1]
    sizes = torch.tensor([small.shape[:2]] * 8)
    drawn = torch.from_numpy(np.stack([augment.draw(0, 0, i) for i in range(8)]))
    by_filter = {Image.BILINEAR: [], "shrunken": []}
    for box in augment.crops(sizes, drawn).tolist():
        top, left, height, width = box
        corners = [left, top, left + width, top + height]
        corners = [min(v * scale, most) for v, most in zip(corners, whole.size * 2, strict=True)]
        wanted = np.asarray(whole.resize((side, side), Image.BICUBIC, corners)).astype(int)
        other = np.asarray(whole.resize((side, side), Image.BILINEAR, corners)).astype(int)
        found = augment.resized(torch.tensor(small), box, (side, side)).permute(1, 2, 0).numpy()
        by_filter[Image.BILINEAR].append(np.abs(other - wanted).mean())
        by_filter["shrunken"].append(np.abs(found.astype(int) - wanted).mean())
    assert np.mean(by_filter["shrunken"]) < np.mean(by_filter[Image.BILINEAR])


def test_what_is_cut_off_was_in_no_crop(tmp_path):
    pixels = np.zeros((40, 200, 3), np.uint8)
    pixels[:, 73:127] = 255  # the middle: 53 of 200, and all that a crop takes
    Image.fromarray(pixels).save(tmp_path / "x.png")
    small = torch.tensor(resize_for_cache(str(tmp_path / "x.png"), 48))
    assert small.shape[0] == 40
    unchanged = torch.full((1, augment.DRAWN), 0.99)
    shown = TRANSFORM([small], unchanged)
    assert shown.min() == shown.max()


def training_pictures(paths, in_memory=1e6, folder=".", seed=11):
    kept = open_cache(np.array([SIZE] * len(paths)), TRANSFORM.cached_side, in_memory, folder)
    return TrainingImages(paths, TRANSFORM.cached_side, seed, kept)


@pytest.mark.parametrize(("processes", "kept"), [(2, True), (3, False)])
def test_processes_share_the_room_on_a_disk(tmp_path, monkeypatch, processes, kept):
    free = SimpleNamespace(free=5 * 4 * BYTES)  # 2.5 times what a process keeps
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    picture = np.ones((10, 10, 3), np.uint8)
    room = open_cache(np.array([SIZE] * 4), 64, 0, tmp_path, processes)
    room.put(1, picture)
    assert (room.get(1) is not None) == kept


def test_neither_worker_processes_nor_kept_pictures_change_a_sample(tmp_path):
    paths = write_pictures(tmp_path / "pictures", 5)
    wanted = [
        [TrainingImages.__getitem__(training_pictures(paths), key) for key in batch]
        for batch in KEYS
    ]
    for workers in (0, 2):
        files = training_pictures(paths, 2 * BYTES, tmp_path / "kept")
        options = {"workers": workers, "pinned": False, "collate": list}
        for batch, wanted_batch in zip(loader(files, KEYS, **options), wanted, strict=True):
            for sample, wanted_sample in zip(batch, wanted_batch, strict=True):
                for part, wanted_part in zip(sample, wanted_sample, strict=True):
                    np.testing.assert_array_equal(part, wanted_part)


def test_batches_hold_transformed_pictures_in_the_order_of_their_keys(tmp_path):
    paths = write_pictures(tmp_path, 5)
    files = training_pictures(paths)
    found = list(batches(files, KEYS, TRANSFORM, CPU, threads=1))
    assert [index.tolist() for index, _ in found] == [[i for _, i in batch] for batch in KEYS]
    for (_, images), batch in zip(found, KEYS, strict=True):
        small = [torch.tensor(resize_for_cache(paths[i], TRANSFORM.cached_side)) for _, i in batch]
        drawn = torch.tensor(np.stack([augment.draw(11, *key) for key in batch]))
        assert torch.equal(images, TRANSFORM(small, drawn))


def test_pictures_differ_between_passes_seeds_and_images(tmp_path):
    path = write_pictures(tmp_path, 1)[0]
    keys = [[(0, 0), (0, 1), (1, 0)]]
    found = [
        next(batches(training_pictures([path, path], seed=seed), keys, TRANSFORM, CPU, 1))[1]
        for seed in (11, 12)
    ]
    different = [*found[0], found[1][0]]
    assert len({images.numpy().tobytes() for images in different}) == 4


def test_signals_to_a_whole_job_leave_the_workers_to_their_parent(tmp_path):
    files = training_pictures(write_pictures(tmp_path, 2))
    keys = [[(number, 0), (number, 1)] for number in range(20)]
    found = iter(loader(files, keys, workers=2, pinned=False, collate=list))
    first = [next(found), next(found)]  # both workers are up
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    assert [[index for index, *_ in batch] for batch in [*first, *found]] == [[0, 1]] * 20


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [3 * BYTES, BYTES], ids=["memory", "both"])
def test_a_kept_picture_is_read_once(tmp_path, memory):
    paths = write_pictures(tmp_path / "pictures", 3)
    files = training_pictures(paths, memory, tmp_path / "kept")
    seen = {index: files[0, index][2].copy() for index in (2, 0)}
    for path in paths:
        Path(path).unlink()
    for index, picture in seen.items():
        np.testing.assert_array_equal(files[1, index][2], picture)
    with pytest.raises(UserError):
        files[0, 1]
    assert not (tmp_path / "kept").exists()  # the file has no name, and goes with the process


def test_without_room_on_the_disk_pictures_are_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "FREE", 1e12)
    paths = write_pictures(tmp_path / "pictures", 2)
    files = training_pictures(paths, BYTES, tmp_path)
    for index in (0, 1):
        files[0, index]
        Path(paths[index]).unlink()
    files[1, 0]
    with pytest.raises(UserError):
        files[1, 1]


def test_a_disk_that_is_full_costs_nothing_but_time(tmp_path, monkeypatch):
    paths = write_pictures(tmp_path / "pictures", 1)
    files = training_pictures(paths, 0, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    first = files[0, 0][2]
    np.testing.assert_array_equal(files[1, 0][2], first)
    Path(paths[0]).unlink()
    with pytest.raises(UserError):
        files[0, 0]


def test_a_picture_larger_than_was_said_is_not_kept_and_harms_no_other():
    kept = ImageCache([12, 12], 24, None)
    first = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    kept.put(0, first)
    kept.put(1, np.zeros((2, 3, 3), np.uint8))
    assert kept.get(1) is None
    np.testing.assert_array_equal(kept.get(0), first)
