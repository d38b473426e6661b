import pytest

from latteclip.demo import textures


@pytest.mark.parametrize("other", [{"seed": 6}, {"stream": 1}, {"gap": 0.6}])
def test_seed_stream_and_gap_matter(other):
    images, _ = textures.generate(40, **{"gap": 0.7, "seed": 5})
    others, _ = textures.generate(40, **({"gap": 0.7, "seed": 5} | other))
    assert not (images == others).all(axis=(1, 2, 3)).any()


def test_every_class_is_drawn_with_contrast():
    images, named = textures.generate(280, 0.0, 5)
    assert {a.classname for a in named} == set(textures.CLASSNAMES)
    assert images.std(axis=(1, 2)).max(axis=1).min() > 5


def test_domains_run_from_source_to_target():
    for gap, blur, earthy in ((0, (0.1, 0.4), 0), (1, (0.5, 1.1), 0.75), (0.5, (0.3, 0.75), 0.375)):
        domain = textures.domain_at(gap)
        assert domain.measures["blur"] == pytest.approx(blur) and domain.earthy == earthy
    with pytest.raises(ValueError, match="gap"):
        textures.domain_at(1.5)
