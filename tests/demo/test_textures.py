import pytest

from latteclip.demo import textures
from latteclip.demo.textures import SOURCE, TARGET


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
