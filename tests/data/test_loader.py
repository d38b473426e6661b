import multiprocessing
import os
import random
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import write_pictures

from latteclip.core.errors import UserError
from latteclip.data.loader import ImageFiles, batches, decoded_images, in_order, loader, open_rgb

CPU = torch.device("cpu")


def saved(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path):
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def ramp(height, width, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return (np.arange(np.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


def test_rgb_comes_out_as_it_is(tmp_path):
    values = ramp(5, 9, 3)
    np.testing.assert_array_equal(
        pixels(saved(tmp_path / "x.png", Image.fromarray(values))), values
    )


def test_greyscale_is_repeated_over_the_channels(tmp_path):
    values = ramp(5, 9)
    found = pixels(saved(tmp_path / "x.png", Image.fromarray(values)))
    np.testing.assert_array_equal(found, np.repeat(values[:, :, None], 3, axis=2))


def test_palette_is_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    found = pixels(saved(tmp_path / "x.png", image))
    assert found.tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_alpha_is_dropped(tmp_path):
    values = ramp(5, 9, 4)
    found = pixels(saved(tmp_path / "x.png", Image.fromarray(values, "RGBA")))
    np.testing.assert_array_equal(found, values[:, :, :3])


def test_cmyk_jpeg_has_its_colours(tmp_path):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan ink only
    found = pixels(saved(tmp_path / "x.jpg", image, quality=100))
    np.testing.assert_allclose(found, np.broadcast_to([0, 255, 255], (16, 16, 3)), atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 256, 25650, 40000, 65535]], np.uint16)
    found = pixels(saved(tmp_path / f"x.{suffix}", Image.fromarray(values)))
    wanted = [v // 256 for v in (0, 256, 25650, 40000, 65535)]
    assert found.tolist() == [[[v] * 3 for v in wanted]]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    values = ramp(5, 9, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(saved(tmp_path / "x.png", Image.fromarray(values), exif=exif))
    np.testing.assert_array_equal(found, turn(values))


def cut_jpeg(path):
    saved(path, Image.fromarray(ramp(64, 64, 3)))
    path.write_bytes(path.read_bytes()[:-1500])


def cut_png(path):
    saved(path, Image.fromarray(ramp(64, 64, 3)))
    path.write_bytes(path.read_bytes()[:-100])


def text_file(path):
    path.write_text("not an image")


def empty_file(path):
    path.touch()


def bomb(path):
    saved(path, Image.new("L", (1, 1)))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)  # width and height in the header
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [cut_jpeg, cut_png, text_file, empty_file, bomb])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, spoil):
    path = tmp_path / ("broken.jpg" if spoil is cut_jpeg else "broken.png")
    spoil(path)
    with pytest.raises(UserError, match=r"broken\.(jpg|png) cannot be decoded"):
        open_rgb(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png"):
        open_rgb(tmp_path / "nowhere.png")


def test_in_order_covers_every_image_once():
    assert in_order(7, 3) == [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 4), (0, 5)], [(0, 6)]]
    assert in_order(0, 3) == []


def test_batches_come_in_the_order_of_their_keys(tmp_path):
    files = ImageFiles(write_pictures(tmp_path, 4), lambda image: torch.tensor(image.size))
    found = list(batches(files, [[(0, 2), (0, 0)], [(5, 3)]], CPU, threads=1))
    assert [indices.tolist() for indices, _ in found] == [[2, 0], [3]]
    assert found[0][1].tolist() == [[70, 64], [70, 64]]


@pytest.fixture
def augmented(demo_clip, tmp_path):
    paths = write_pictures(tmp_path, 3)
    return lambda seed: ImageFiles(paths, demo_clip.augment, seed)


def test_an_augmentation_depends_on_seed_epoch_and_index_alone(augmented):
    files = augmented(11)
    first = {key: files[key][1] for key in [(0, 0), (0, 1), (0, 2), (1, 1)]}
    torch.manual_seed(99)
    random.seed(99)
    files = augmented(11)
    for key in [(1, 1), (0, 2), (0, 0), (0, 1)]:
        index, tensor = files[key]
        assert index == key[1]
        assert torch.equal(tensor, first[key])


@pytest.mark.parametrize("kept", [False, True], ids=["decoded anew", "kept decoded"])
def test_worker_processes_and_kept_pictures_change_no_sample(demo_clip, tmp_path, kept):
    paths = write_pictures(tmp_path, 5)
    keys = [[(0, 4), (0, 1)], [(0, 0), (0, 2)], [(1, 1), (1, 4)], [(1, 3), (1, 0)]]
    wanted = list(batches(ImageFiles(paths, demo_clip.augment, 11), keys, CPU, threads=1))
    for workers in (0, 1, 3):
        decoded = decoded_images([70 * 64 * 3] * 5, limit=1e6) if kept else None
        files = ImageFiles(paths, demo_clip.augment, 11, decoded)
        found = list(loader(files, keys, workers=workers, pinned=False))
        for (index, tensor), (wanted_index, wanted_tensor) in zip(found, wanted, strict=True):
            assert torch.equal(index, wanted_index)
            assert torch.equal(tensor, wanted_tensor)


def test_signals_to_a_whole_job_leave_the_workers_to_their_parent(demo_clip, tmp_path):
    paths = write_pictures(tmp_path, 2)
    keys = [[(epoch, 0), (epoch, 1)] for epoch in range(20)]
    files = ImageFiles(paths, demo_clip.augment, 11)
    wanted = list(loader(files, keys, workers=0, pinned=False))
    found = iter(loader(files, keys, workers=2, pinned=False))
    first = [next(found), next(found)]  # both workers are up
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    for (_, tensor), (_, wanted_tensor) in zip([*first, *found], wanted, strict=True):
        assert torch.equal(tensor, wanted_tensor)


def test_a_kept_picture_is_decoded_once(tmp_path):
    paths = write_pictures(tmp_path, 3)
    decoded = decoded_images([70 * 64 * 3] * 3, limit=1e6)
    pictures = [decoded.open(index, paths[index]) for index in (2, 0)]
    for path in paths:
        Path(path).unlink()
    for index, picture in zip((2, 0), pictures, strict=True):
        assert decoded.open(index, "gone").tobytes() == picture.tobytes()
        assert decoded.open(index, "gone").size == (70, 64)
    with pytest.raises(UserError):
        decoded.open(1, paths[1])


def test_a_picture_larger_than_was_said_is_not_kept_and_harms_no_other(tmp_path):
    paths = write_pictures(tmp_path, 2)
    decoded = decoded_images([70 * 64 * 3, 10], limit=1e6)
    first, second = (decoded.open(index, paths[index]).tobytes() for index in (0, 1))
    Path(paths[0]).unlink()
    assert decoded.open(0, paths[0]).tobytes() == first
    assert decoded.open(1, paths[1]).tobytes() == second
    Path(paths[1]).unlink()
    with pytest.raises(UserError):
        decoded.open(1, paths[1])


def test_pictures_are_kept_only_where_all_of_them_fit():
    assert decoded_images([10, 20], limit=30) is not None
    assert decoded_images([10, 21], limit=30) is None


def test_augmentations_differ_between_epochs_seeds_and_images(demo_clip, tmp_path):
    path = write_pictures(tmp_path, 1)[0]
    files = ImageFiles([path, path], demo_clip.augment, 11)
    others = [files[0, 1][1], files[1, 0][1], ImageFiles([path], demo_clip.augment, 12)[0, 0][1]]
    assert not any(torch.equal(files[0, 0][1], other) for other in others)


def test_augmentation_leaves_the_outer_random_numbers_alone(augmented):
    files = augmented(11)
    torch.manual_seed(5)
    random.seed(5)
    numpy_state = np.random.get_state()[1].copy()
    wanted = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    files[0, 0]
    assert torch.equal(torch.rand(3), wanted[0])
    assert random.random() == wanted[1]
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_evaluation_transform_is_not_random(demo_clip, tmp_path):
    files = ImageFiles(write_pictures(tmp_path, 2), demo_clip.preprocess)
    assert torch.equal(files[0, 1][1], files[7, 1][1])


def test_the_paper_s_augmentation_reaches_the_transform(demo_clip):
    described = repr(demo_clip.augment)
    assert "scale=(0.9, 1.0)" in described
    parts = {type(part).__name__: part for part in demo_clip.augment.transforms}
    assert parts["color_jitter"].p == 0.8
    assert parts["gray_scale"].p == 0.2
    assert "brightness=(0.5, 1.5), contrast=(0.5, 1.5)" in repr(parts["color_jitter"].transf)
