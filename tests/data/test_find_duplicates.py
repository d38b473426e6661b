import io

import numpy as np
import pytest
from PIL import Image
from support.image_folders import index, picture

from latteclip.core import tables
from latteclip.data import find_duplicates as stage


def scaled(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def recompressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image):
    """93 % of each side, off the middle."""
    width, height = round(0.93 * image.width), round(0.93 * image.height)
    left, top = round(0.7 * (image.width - width)), round(0.2 * (image.height - height))
    return image.crop((left, top, left + width, top + height))


TWINS = {"scaled": scaled, "recompressed": recompressed, "cropped": cropped}
N = 12
DRAW = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures, a twin of each kind, two grey pictures, and a chain of two crops."""
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "photos" / "b").mkdir()
    Image.new("RGB", (90, 90), "grey").save(tmp_path / "photos" / "b" / "grey.jpg")
    pictures = {str(i): picture(i) for i in range(N)}
    for number, (name, twin) in enumerate(TWINS.items()):
        pictures[name] = twin(picture(number))
    pictures["chain"] = TWINS["cropped"](pictures["cropped"])
    pictures["grey"] = Image.new("RGB", (90, 90), "grey")
    for name, image in pictures.items():
        image.save(folder / f"{name}.jpg", quality=92)
    return folder.parent


def test_sets_of_scaled_recompressed_and_cropped_pictures_are_found(photos, tmp_path):
    index(photos, tmp_path, threads=2)
    stage.find_duplicates(str(tmp_path / "out/images.parquet"), str(tmp_path / "d.parquet"))
    rows = tables.read(tmp_path / "d.parquet").to_pylist()
    sets = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row["image_id"])
    expected = [["0", "scaled"], ["1", "recompressed"], ["2", "chain", "cropped"]]
    assert list(sets.values()) == [[f"a/{name}.jpg" for name in one] for one in expected]


def hashes_of(n):
    return DRAW.integers(1, 2**63, (n, 2, len(stage.VIEWS)), dtype=np.uint64)


def flipped(values, n):
    """Hashes of which n bits differ, other ones in each."""
    bits = [DRAW.permutation(64)[:n] for _ in values]
    return values ^ np.array([sum(1 << int(b) for b in one) for one in bits], np.uint64)


def test_no_pair_within_the_radius_is_missed_and_none_beyond_it_is_taken(monkeypatch):
    monkeypatch.setattr(stage, "AT_ONCE", 5)
    n = 100
    hashes = hashes_of(n)
    phashes, dhashes = hashes[:, 0], hashes[:, 1]
    distances = [(p, d) for p in range(10) for d in (0, 10, 11)]
    wanted = np.full(n, -1)
    for number, (p, d) in enumerate(distances):
        first, second = 2 * number, 2 * number + 1
        view = number % phashes.shape[1]
        phashes[second, 0] = flipped(phashes[first, view : view + 1], p)[0]
        dhashes[second, 0] = flipped(dhashes[first, view : view + 1], d)[0]
        if p <= stage.MAX_PHASH and d <= stage.MAX_DHASH:
            wanted[[first, second]] = wanted.max() + 1
    assert stage.duplicate_sets(hashes).tolist() == wanted.tolist()


def test_a_long_burst_is_one_set():
    hashes = hashes_of(40)
    hashes[20:] = hashes[20]
    found = stage.duplicate_sets(hashes)
    assert found.tolist() == [*[-1] * 20, *[0] * 20]
    assert len(stage.duplicate_sets(hashes[:0])) == 0
