import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from support.twins import cropped, picture

from latteclip.data import fingerprints
from latteclip.data.fingerprints import BITS, FREQUENCIES, SIDE, VIEWS, fingerprint, hashes


def bits(image):
    """The hashes of a picture as bits [V, BITS]."""
    found = np.frombuffer(fingerprint(image).hashes, np.uint8)
    return np.unpackbits(found.reshape(len(VIEWS), -1), axis=1)


def test_the_hash_of_the_whole_is_that_of_the_cosine_transform():
    grey = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE)).astype(np.float32)
    waves = dctn(grey - grey.mean(), type=2)[:FREQUENCIES, :FREQUENCIES].ravel()
    wanted = waves > np.median(waves)
    found = np.unpackbits(hashes(grey)[0]).astype(bool)
    assert (found != wanted)[np.abs(waves - np.median(waves)) > 1e-3 * waves.std()].sum() == 0


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
    side = fingerprints.THUMBNAIL
    thumbnail = np.frombuffer(found.thumbnail, np.uint8).reshape(side, side)
    assert (thumbnail[:, : side // 2] == 0).all() and (thumbnail[:, side // 2 :] == 255).all()
