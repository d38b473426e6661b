import logging

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from support.image_folders import TWINS, cropped, picture

from latteclip.config.sections.split import SplitSection
from latteclip.core import tables
from latteclip.data import find_duplicates as stage
from latteclip.data.find_duplicates import MIN_CORRELATION, detail_correlation
from latteclip.data.fingerprints import (
    BITS,
    FREQUENCIES,
    SIDE,
    THUMBNAIL,
    VIEWS,
    fingerprint,
    hashes,
)
from latteclip.data.index_images import index_images

N = 12


def write(root, images):
    """Pictures by their path."""
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, quality=92)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures, half of them for testing, and a twin of each kind in one split or both."""
    root = tmp_path_factory.mktemp("photos")
    split = ["train", "test"]
    write(
        root, {f"{split[i % 2]}/{'ab'[i % 3 == 0]}/{i}.jpg": picture(i) for i in range(N)}
    )
    write(
        root,
        {
            "train/a/scaled.jpg": TWINS["scaled"](picture(2)),  # of train/a/2.jpg
            "test/a/recompressed.jpg": TWINS["recompressed"](
                picture(4)
            ),  # of train/a/4.jpg
            "test/b/cropped.jpg": TWINS["cropped"](picture(3)),  # of test/b/3.jpg
            "train/a/grey.jpg": Image.new("RGB", (90, 90), "grey"),
            "train/a/grey_too.jpg": Image.new("RGB", (70, 90), "grey"),
        },
    )
    return root


PAIRS = {
    ("train/a/2.jpg", "train/a/scaled.jpg"),
    ("train/a/4.jpg", "test/a/recompressed.jpg"),
    ("test/b/3.jpg", "test/b/cropped.jpg"),
}


def found(folder, photos):
    """The table of a folder of pictures."""
    paths = [
        str(folder / f"{name}.parquet") for name in ("images", "fingerprints", "duplicates")
    ]
    settings = SplitSection(kind="folders")
    index_images(
        str(photos), settings, paths[0], str(folder / "c.csv"), paths[1], threads=1
    )
    stage.find_duplicates(*paths)
    return tables.read(paths[2], tables.DUPLICATES).to_pylist()


def test_twins_are_found_within_and_between_splits(tmp_path, photos, caplog):
    caplog.set_level(logging.INFO)
    rows = found(tmp_path, photos)
    assert {(row["image_id"], row["duplicate_id"]) for row in rows} == PAIRS
    assert len(rows) == len(PAIRS) and all(0 <= row["distance"] < 0.15 for row in rows)
    assert (
        "3 pairs of near-duplicates among 17 images: 1 within training, 1 within the test "
        in (caplog.text)
    )
    assert "1 between the two." in caplog.text


def test_many_images_are_searched_by_cells_to_the_same_end(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(stage, "ALL_PAIRS", 3)
    monkeypatch.setattr(stage, "QUERIES", 7)
    monkeypatch.setattr(stage, "PAIRS", 2)
    rows = found(tmp_path, photos)
    assert {(row["image_id"], row["duplicate_id"]) for row in rows} == PAIRS


def test_a_folder_without_twins_and_one_without_contrast(tmp_path):
    write(tmp_path / "p", {f"{'ab'[i % 2]}/{i}.jpg": picture(i) for i in range(N)})
    assert found(tmp_path, tmp_path / "p") == []
    plain = {
        f"{'ab'[i % 2]}/{i}.jpg": Image.new("RGB", (64, 64), (i, i, i)) for i in range(N)
    }
    write(tmp_path / "q", plain)
    assert found(tmp_path, tmp_path / "q") == []


def test_different_things_before_the_same_background_are_no_pair(tmp_path):
    """Their thumbnails are alike; their details are not."""
    things = {}
    for axis in (0, 1):
        pixels = np.full((128, 128, 3), 230, np.uint8)
        stripes = np.indices((64, 64))[axis] // 4 % 2
        pixels[32:96, 32:96] = 40 + 120 * stripes[..., None]
        things[f"a/{axis}.png"] = Image.fromarray(pixels)
    write(tmp_path / "p", things | {f"b/{i}.png": picture(i) for i in range(N)})
    assert found(tmp_path, tmp_path / "p") == []
    small = [stage.small_picture(image) for image in things.values()]
    same, different = (
        float(detail_correlation(small[0][None], small[i][None], [0])[0]) for i in range(2)
    )
    assert same > 0.99 and different < MIN_CORRELATION


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_a_crop_is_aligned_with_its_whole(view):
    share, down, across = VIEWS[view]
    whole = picture(3, (256, 256))
    left, top = (256 * (1 - share) * place for place in (across, down))
    part = whole.resize((64, 64), box=(left, top, left + 256 * share, top + 256 * share))
    ones = stage.small_picture(whole)[None]
    assert detail_correlation(ones, np.asarray(part)[None], [view]) > 0.95


# Fingerprints.


def bits(image):
    """The hashes of a picture as bits [V, BITS]."""
    found = np.frombuffer(fingerprint(image).hashes, np.uint8)
    return np.unpackbits(found.reshape(len(VIEWS), -1), axis=1)


def test_the_hash_of_the_whole_is_that_of_the_cosine_transform():
    grey = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE)).astype(np.float32)
    waves = dctn(grey - grey.mean(), type=2)[:FREQUENCIES, :FREQUENCIES].ravel()
    wanted = waves > np.median(waves)
    found = np.unpackbits(hashes(grey)[0]).astype(bool)
    assert (found != wanted)[
        np.abs(waves - np.median(waves)) > 1e-3 * waves.std()
    ].sum() == 0


@pytest.mark.parametrize("view", range(1, len(VIEWS)))
def test_the_hash_of_a_view_is_that_of_the_crop(view):
    image = picture(1, (640, 480))
    share, down, across = VIEWS[view]
    whole = bits(cropped(image, share, across, down))[0]
    differing = (bits(image) != whole).sum(axis=1)
    assert differing.argmin() == view and differing[view] < BITS / 16


def test_sizes_and_thumbnail_are_those_of_the_picture():
    image = Image.new("RGB", (48, 32), "black")
    image.paste("white", (24, 0, 48, 32))
    found = fingerprint(image)
    assert (found.width, found.height) == (48, 32)
    thumbnail = np.frombuffer(found.thumbnail, np.uint8).reshape(THUMBNAIL, 2, -1)
    assert (thumbnail[:, 0] == 0).all() and (thumbnail[:, 1] == 255).all()
