import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import write_pictures

from latteclip.data.loader import by_processes
from latteclip.train import images as training_images
from latteclip.train.images import DecodedImages, TrainingImages

SIDE = (32, 40)  # height and width of the input
KEYS = [[(0, 3), (0, 1)], [(1, 0), (1, 3), (2, 4)], [(2, 0)]]


@pytest.fixture
def paths(tmp_path):
    return write_pictures(tmp_path / "pictures", 5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_sample_depends_on_seed_pass_and_image_alone(
    paths, tmp_path, workers, is_cached, monkeypatch
):
    wanted = TrainingImages(paths, SIDE, seed=7)
    if not workers:
        monkeypatch.setattr("latteclip.data.loader.can_fork", lambda: False)
    files = TrainingImages(paths, SIDE, 7, tmp_path / "cache" if is_cached else None)
    before = torch.get_rng_state()
    for _ in range(2):  # the second time from the cache
        found = list(by_processes(files, KEYS, torch.device("cpu"), workers))
        assert [keys for keys, _ in found] == KEYS
        for keys, images in found:
            for key, image in zip(keys, images, strict=True):
                assert torch.equal(image, wanted[key][1])
    assert torch.equal(torch.get_rng_state(), before)
    others = [wanted[0, 0][1], wanted[1, 0][1], wanted[0, 1][1]]
    others.append(TrainingImages(paths, SIDE, seed=8)[0, 0][1])
    assert len({image.numpy().tobytes() for image in others}) == 4


def drawn(folder, width, height):
    """200 samples of a ramp of colours."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    ramp = np.broadcast_to(row, (height, width))
    Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], 2)).save(folder / "ramp.png")
    files = TrainingImages([str(folder / "ramp.png")], SIDE, seed=0)
    return torch.stack([files[number, 0][1] for number in range(200)])


def test_crops_and_colours_are_drawn_as_in_the_paper(tmp_path):
    samples = drawn(tmp_path, 100, 90)
    assert samples.dtype == torch.uint8 and samples.shape == (200, 3, *SIDE)
    assert len(samples.unique(dim=0)) > 170
    is_grey = (samples == samples[:, :1]).flatten(1).all(dim=1)
    assert 22 < is_grey.sum() < 60  # a fifth
    # No crop of 3:4 to 4:3 has nine tenths of this area: the largest one in the middle is taken.
    _, counts = drawn(tmp_path, 200, 90).unique(dim=0, return_counts=True)
    *jittered, only_grey, plain = counts.sort().values.tolist()
    assert 14 < plain < 54 and 1 < only_grey < 22  # 0.2 x 0.8 and 0.2 x 0.2
    assert set(jittered) == {1}


def test_images_are_reduced_before_they_are_cached(tmp_path):
    sizes = {"wide.jpg": (900, 600), "small.png": (30, 20)}
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(tmp_path / name)
    paths = [str(tmp_path / name) for name in sizes]
    images = DecodedImages(tmp_path / "cache", paths, 60)
    for _ in range(2):
        assert [images.read(i).size for i in range(2)] == [(90, 60), (30, 20)]
        assert images.read(0).getpixel((5, 5))[0] > 250


def test_what_is_damaged_changed_or_cannot_be_written_is_decoded_again(
    paths, tmp_path, monkeypatch
):
    def pixels():
        return DecodedImages(tmp_path / "cache", paths, 48).read(2).tobytes()

    wanted = pixels()
    [file] = (tmp_path / "cache").glob("*/*.ppm")
    for damaged in (b"", b"P6\n12", file.read_bytes()[:-7]):
        file.write_bytes(damaged)
        assert pixels() == wanted
        assert pixels() == wanted
    os.utime(paths[2], (1, 1))
    shutil.copyfile(paths[3], paths[2])
    assert pixels() != wanted
    full = nullcontext(Path("/dev/full"))
    monkeypatch.setattr(training_images, "replacing", lambda _: full)
    shutil.rmtree(tmp_path / "cache")
    assert pixels() != wanted


@pytest.mark.parametrize(("free", "most"), [(0, 100), (10**12, 4)])
def test_nothing_is_cached_without_room_or_for_very_many_images(
    paths, tmp_path, monkeypatch, free, most
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(training_images, "MOST_CACHED", most)
    images = DecodedImages(tmp_path / "cache", paths, 48)
    assert images.read(0).size == images.read(0).size
    assert not (tmp_path / "cache").exists()
