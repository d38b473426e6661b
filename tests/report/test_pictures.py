import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from latteclip.report import images


def test_noise_fits_into_its_bytes_and_a_small_picture_keeps_its_size():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (700, 500, 3), dtype=np.uint8))
    small = images.picture(noise, 320, 9_000)
    data = b64decode(small.uri.removeprefix("data:image/webp;base64,"))
    assert len(data) <= 9_000
    shown = Image.open(io.BytesIO(data))
    assert shown.size == (small.width, small.height)
    assert shown.width / shown.height == pytest.approx(5 / 7, abs=0.02)
    flat = images.picture(Image.new("RGB", (64, 48), "red"), 320, 9_000)
    assert (flat.width, flat.height) == (64, 48)
