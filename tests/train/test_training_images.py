from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from support.tiny import write_pictures

from latteclip.data.loader import batches
from latteclip.train import data as module
from latteclip.train.data import TrainingImages

SIDE = (32, 40)  # height and width of the input
KEYS = [[(0, 3), (0, 1)], [(1, 0), (1, 3), (2, 4)], [(2, 0)]]


@pytest.fixture
def paths(tmp_path):
    return write_pictures(tmp_path / "pictures", 5)


def images(paths, folder=None, side=SIDE, seed=7):
    checksums = pa.chunked_array([[path.encode() for path in paths]])
    return TrainingImages(paths, checksums, side, seed, folder and str(folder))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_sample_depends_on_seed_pass_and_image_alone(
    paths, tmp_path, workers, is_cached, monkeypatch
):
    wanted = images(paths)
    if not workers:
        monkeypatch.setattr("latteclip.data.loader.can_fork", lambda: False)
    files = images(paths, tmp_path / "cache" if is_cached else None)
    before = torch.get_rng_state()
    for _ in range(2):  # the second time from the cache
        found = list(batches(files, KEYS, torch.device("cpu"), workers))
        assert [keys for keys, _ in found] == KEYS
        for keys, batch in found:
            for key, image in zip(keys, batch, strict=True):
                assert torch.equal(image, wanted[key][1])
    assert torch.equal(torch.get_rng_state(), before)
    assert image.dtype == torch.uint8 and image.shape == (3, *SIDE)
    others = [wanted[0, 0][1], wanted[1, 0][1], wanted[0, 1][1]]
    others.append(images(paths, seed=8)[0, 0][1])
    assert len({image.numpy().tobytes() for image in others}) == 4


def test_nothing_is_cached_without_room(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FREE", 10**12)
    assert images(paths, tmp_path / "cache")[0, 0][1].shape == (3, *SIDE)
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_leaves_images_uncached(paths, tmp_path, monkeypatch):
    files = images(paths, tmp_path / "cache")
    full = nullcontext(Path("/dev/full"))
    monkeypatch.setattr(module, "replacing", lambda _: full)
    assert torch.equal(files[0, 0][1], images(paths)[0, 0][1])
