"""Training images: how they are cut, coloured, reduced, cached and batched."""

import errno
import itertools
import math
import multiprocessing
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.functional as TF
from generate_textures import SIDE
from PIL import Image
from support.backbones import CPU
from support.tiny import write_pictures
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from latteclip.core.errors import UserError
from latteclip.data.loader import loader
from latteclip.train import training_images as images
from latteclip.train.training_images import (
    Augmentation,
    ImageCache,
    TrainingImages,
    cached_sizes,
    resize_for_cache,
)

N = 3000
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
# LatteCLIP, section 4, in the terms of open_clip.
AUG_CFG = {
    "scale": (0.9, 1.0),
    "color_jitter": (0.5, 0.5, 0.5, 0.1),
    "color_jitter_prob": 0.8,
    "gray_scale_prob": 0.2,
}
WRITTEN = (70, 64)  # size of the pictures that tests write
BYTES = 3 * 53 * 49  # that are set aside for one
TRANSFORM = Augmentation((32, 32), (0.5,) * 3, (0.27,) * 3)
KEYS = [[(0, 4), (0, 1)], [(0, 0), (0, 2)], [(1, 1), (1, 4)], [(1, 3), (1, 0)]]

# --- augmentation --------------------------------------------------------------------------------


def drawn(n, seed=0):
    return torch.from_numpy(np.stack([images.draw(seed, 0, index) for index in range(n)]))


@pytest.fixture(scope="module")
def many():
    return drawn(N)


def pictures(n, *sizes):
    """Smooth random pictures, uint8 [h, w, 3]."""
    rng = np.random.default_rng(0)
    found = []
    for (height, width), _ in zip(itertools.cycle(sizes), range(n), strict=False):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        found.append(
            torch.from_numpy(np.array(coarse.resize((width, height), Image.BICUBIC)))
        )
    return found


def assert_same_distribution(found, wanted):
    """Kolmogorov and Smirnov's test of two samples, at a level of 0.001."""
    found, wanted = np.sort(found), np.sort(wanted)
    at = np.concatenate([found, wanted])
    shares = [
        np.searchsorted(part, at, side="right") / len(part) for part in (found, wanted)
    ]
    assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(
        1 / len(found) + 1 / len(wanted)
    )


@pytest.mark.parametrize("size", [(96, 96), (336, 440), (300, 210)], ids=str)
def test_crops_are_distributed_as_those_of_torchvision(many, size):
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    parameters = RandomResizedCrop.get_params
    wanted = [parameters(image, list(AUG_CFG["scale"]), [3 / 4, 4 / 3]) for _ in range(N)]
    found = images.crops(torch.tensor(size).expand(N, 2), many).double().T
    for kind, (one, other) in enumerate(
        zip(found, torch.tensor(wanted).double().T, strict=True)
    ):
        assert_same_distribution(one.numpy(), other.numpy()), kind
    top, left, height, width = found
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()


@pytest.mark.parametrize("size", [(200, 500), (500, 201), (100, 150), (1, 40)], ids=str)
def test_of_a_long_picture_the_middle_is_taken_as_torchvision_does(many, size):
    wanted = RandomResizedCrop.get_params(torch.empty(3, *size), [0.9, 1.0], [3 / 4, 4 / 3])
    found = images.crops(torch.tensor(size).expand(50, 2), many[:50])
    assert found.tolist() == [list(wanted)] * 50
    assert max(size) / min(size) >= images.WIDEST > images.RATIO[1] / images.SCALE[0]


def test_colours_are_drawn_as_open_clip_does(many):
    parts = open_clip.image_transform(32, is_train=True, aug_cfg=AUG_CFG).transforms
    jitter, grey = parts[2], parts[3]
    assert parts[0].scale == images.SCALE and parts[0].ratio == images.RATIO
    order, factors = images.colours(many)
    jittered = [steps[:4] for steps in order if len(steps) >= 4]
    assert len(jittered) / N == pytest.approx(jitter.p, abs=4 * math.sqrt(0.16 / N))
    turned = sum(images.GREY in steps for steps in order)
    assert turned / N == pytest.approx(grey.p, abs=4 * math.sqrt(0.16 / N))
    assert {steps[-1] for steps in order if len(steps) in (1, 5)} == {images.GREY}
    counts = Counter(map(tuple, jittered))
    assert counts.keys() == set(itertools.permutations(range(4)))
    assert max(
        abs(count - len(jittered) / 24) for count in counts.values()
    ) < 4 * math.sqrt(N / 24)
    torch.manual_seed(0)
    own = jitter.transf
    ranges = own.brightness, own.contrast, own.saturation, own.hue
    wanted = [ColorJitter.get_params(*ranges)[1:] for _ in range(N)]
    for one, other in zip(factors.T[:4].numpy(), np.array(wanted).T, strict=True):
        assert_same_distribution(one, other)
    assert (factors[:, images.GREY] == 0).all()


@pytest.mark.parametrize("factor", [0.5, 0.93, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_step_is_that_of_torchvision(name, factor):
    torch.manual_seed(0)
    given = torch.rand(5, 3, 20, 30)
    given[0] = 0.3  # no hue
    given[1, :, :9] = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    by = 0.2 * (factor - 1) if name == "hue" else factor
    wanted = torch.stack([getattr(TF, f"adjust_{name}")(image, by) for image in given])
    found = getattr(images, f"adjust_{name}")(given.clone(), torch.full((5, 1, 1, 1), by))
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=5e-4
    )  # the weights have three digits


def by_pil(picture, drawn, side):
    """What torchvision makes of a PIL picture by the same numbers."""
    ((top, left, height, width),) = images.crops(
        torch.tensor([picture.shape[:2]]), drawn
    ).tolist()
    (order,), factors = images.colours(drawn)
    image = Image.fromarray(picture.numpy())
    size = (side, side)
    image = TF.resized_crop(
        image, top, left, height, width, size, InterpolationMode.BICUBIC
    )
    names = ("brightness", "contrast", "saturation", "hue")
    for number in order:
        if number == images.GREY:
            image = TF.rgb_to_grayscale(image, 3)
        else:
            image = getattr(TF, f"adjust_{names[number]}")(image, factors[0, number].item())
    return TF.normalize(TF.to_tensor(image), MEAN, STD)


def test_the_whole_is_what_torchvision_makes_of_pil_pictures(many):
    """PIL cuts values to whole numbers in each of five steps, and hues to 256 of them."""
    transform = images.Augmentation((SIDE, SIDE), MEAN, STD)
    given = pictures(40, (90, 70), (SIDE, SIDE), (60, 200))
    found = transform(given, many[:40])
    wanted = torch.stack(
        [by_pil(picture, many[i : i + 1], SIDE) for i, picture in enumerate(given)]
    )
    levels = (found - wanted).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.mean() < 1.5
    assert levels.quantile(0.99) < 8
    assert len({tuple(steps) for steps in images.colours(many[:40])[0]}) > 20


def test_pictures_do_not_depend_on_those_beside_them(many, monkeypatch):
    transform = images.Augmentation((24, 32), MEAN, STD)
    given = pictures(20, (30, 40), (50, 33))
    together = transform(given, many[:20])
    assert together.shape == (20, 3, 24, 32)
    alone = [transform(given[i : i + 1], many[i : i + 1]) for i in range(20)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    monkeypatch.setattr(  # as on a GPU
        images.Augmentation, "_portions", lambda _, order, __: [list(range(len(order)))]
    )
    torch.testing.assert_close(transform(given, many[:20]), together, rtol=0, atol=1e-5)


def test_size_and_colours_are_those_of_the_model(demo_clip):
    found = images.Augmentation.of(demo_clip)
    assert found.side == (64, 64)
    assert found.mean == (0.5,) * 3 and found.std == (0.27,) * 3
    white = [torch.full((80, 80, 3), 255, dtype=torch.uint8)]
    unchanged = torch.full((1, images.DRAWN), 0.99)
    shade = torch.tensor(0.5 / 0.27).expand(1, 3, 64, 64)
    torch.testing.assert_close(found(white, unchanged), shade)


# --- cached images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((40, 30), (40, 30)),  # never enlarged
        ((3000, 4000), (100, 133)),
        ((1000, 200), (150, 100)),  # the middle of a long one
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
        left, top, right, bottom = images._middle(tuple(size.tolist()), (width, height))
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        # No pixel is lost but at the ends of long pictures, and the shape stays.
        assert min(left, top) < 1e-9 * max(size)
        assert abs((right - left) / width - (bottom - top) / height) < 1e-6


def test_what_is_cut_off_was_in_no_crop(tmp_path):
    pixels = np.zeros((40, 200, 3), np.uint8)
    pixels[:, 73:127] = 255  # the middle: 53 of 200, and all that a crop takes
    Image.fromarray(pixels).save(tmp_path / "x.png")
    small = torch.tensor(resize_for_cache(str(tmp_path / "x.png"), 48))
    assert small.shape[0] == 40
    unchanged = torch.full((1, images.DRAWN), 0.99)
    shown = TRANSFORM([small], unchanged)
    assert shown.min() == shown.max()


def training_pictures(paths, in_memory=1e6, folder=".", seed=11):
    sizes = np.array([WRITTEN] * len(paths))
    return TrainingImages(paths, sizes, TRANSFORM, seed, in_memory, folder)


def test_neither_worker_processes_nor_kept_pictures_change_a_sample(tmp_path):
    paths = write_pictures(tmp_path / "pictures", 5)
    wanted = [
        [TrainingImages.__getitem__(training_pictures(paths), key) for key in batch]
        for batch in KEYS
    ]
    for workers in (0, 2):
        files = training_pictures(paths, 2 * BYTES, tmp_path / "kept")
        options = {"workers": workers, "pinned": False, "collate": list}
        for (batch, _), wanted_batch in zip(
            loader(files, KEYS, **options), wanted, strict=True
        ):
            for sample, wanted_sample in zip(batch, wanted_batch, strict=True):
                for part, wanted_part in zip(sample, wanted_sample, strict=True):
                    np.testing.assert_array_equal(part, wanted_part)


def test_batches_hold_transformed_pictures_in_the_order_of_their_keys(tmp_path):
    paths = write_pictures(tmp_path, 5)
    files = training_pictures(paths)
    for found, batch in zip(files.batches(KEYS, CPU, threads=1), KEYS, strict=True):
        small = [
            torch.tensor(resize_for_cache(paths[i], TRANSFORM.cached_side))
            for _, i in batch
        ]
        drawn = torch.tensor(np.stack([images.draw(11, *key) for key in batch]))
        assert torch.equal(found, TRANSFORM(small, drawn))


def test_signals_to_a_whole_job_leave_the_workers_to_their_parent(tmp_path):
    files = training_pictures(write_pictures(tmp_path, 2))
    keys = [[(number, 0), (number, 1)] for number in range(20)]
    found = iter(loader(files, keys, workers=2, pinned=False, collate=len))
    first = [next(found), next(found)]  # both workers are up
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    assert [*first, *found] == [(2, True)] * 20


@pytest.mark.parametrize("memory", [3 * BYTES, BYTES], ids=["memory", "both"])
def test_a_kept_picture_is_read_once(tmp_path, memory):
    paths = write_pictures(tmp_path / "pictures", 3)
    files = training_pictures(paths, memory, tmp_path / "kept")
    seen = {index: files[0, index][1].copy() for index in (2, 0)}
    for path in paths:
        Path(path).unlink()
    for index, picture in seen.items():
        np.testing.assert_array_equal(files[1, index][1], picture)
    with pytest.raises(UserError):
        files[0, 1]
    assert not (
        tmp_path / "kept"
    ).exists()  # the file has no name, and goes with the process


def test_trainings_share_what_they_decode(tmp_path, monkeypatch):
    paths, shared = write_pictures(tmp_path / "pictures", 4), tmp_path / "decoded"

    def training(some):
        return TrainingImages(
            some, np.array([WRITTEN] * len(some)), TRANSFORM, 1, 0, ".", shared
        )

    def not_decoded(path, _):
        raise UserError(path)

    first = training(paths[:3])
    wanted = [first[0, index][1] for index in range(3)]
    files = [*shared.rglob("*.npy")]
    assert len(files) == 3
    monkeypatch.setattr(images, "resize_for_cache", not_decoded)
    other = training([paths[3], *paths[1::-1]])  # of another fold
    for index, picture in ((1, wanted[1]), (2, wanted[0])):
        np.testing.assert_array_equal(other[5, index][1], picture)
    with pytest.raises(UserError, match=re.escape(paths[3])):
        other[0, 0]
    os.utime(paths[1], (0, 0))  # another file of the same name
    with pytest.raises(UserError, match=re.escape(paths[1])):
        training(paths)[0, 1]
    first.shared.files[2].write_bytes(b"cut off")
    with pytest.raises(UserError, match=re.escape(paths[2])):
        training(paths)[0, 2]


def test_a_disk_without_room_for_all_images_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    [path] = write_pictures(tmp_path / "pictures", 1)
    files = TrainingImages(
        [path], np.array([WRITTEN]), TRANSFORM, 1, 0, ".", tmp_path / "decoded"
    )
    assert files[0, 0] and not (tmp_path / "decoded").exists()


def test_a_disk_that_is_full_costs_nothing_but_time(tmp_path, monkeypatch):
    paths = write_pictures(tmp_path / "pictures", 1)
    files = training_pictures(paths, 0, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    first = files[0, 0][1]
    np.testing.assert_array_equal(files[1, 0][1], first)
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
