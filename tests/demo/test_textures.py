import numpy as np
import pytest

from latteclip.demo import textures
from latteclip.demo.textures import SOURCE, TARGET


def test_same_seed_same_images():
    images, named = textures.generate(40, 0.7, 5)
    again, named_again = textures.generate(40, 0.7, 5)
    assert images.shape == (40, 64, 64, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, again)
    assert named == named_again


@pytest.mark.parametrize("other", [{"seed": 6}, {"stream": 1}, {"gap": 0.6}])
def test_seed_stream_and_gap_matter(other):
    images, _ = textures.generate(40, **{"gap": 0.7, "seed": 5})
    others, _ = textures.generate(40, **({"gap": 0.7, "seed": 5} | other))
    assert not (images == others).all(axis=(1, 2, 3)).any()


def test_every_class_is_drawn_with_contrast():
    images, named = textures.generate(280, 0.0, 5)
    assert {a.classname for a in named} == set(textures.CLASSNAMES)
    assert images.std(axis=(1, 2)).max(axis=1).min() > 5


def test_mix_runs_from_source_to_target():
    assert textures.mix(SOURCE, TARGET, 0) == SOURCE
    assert textures.mix(SOURCE, TARGET, 1) == TARGET
    assert textures.mix(SOURCE, TARGET, 0.5).blur == pytest.approx((0.3, 0.75))
    with pytest.raises(ValueError, match="gap"):
        textures.mix(SOURCE, TARGET, 1.5)


def test_range_of_gaps_goes_from_clean_to_flawed():
    images, named = textures.generate_range(321, 1.0, 5, steps=4)
    assert len(images) == len(named) == 321
    assert {a.finish for a in named[:80]} == {"crisp"}
    assert sum(a.finish == "crisp" for a in named[-80:]) < 40
