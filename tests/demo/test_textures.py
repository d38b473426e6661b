import json

import numpy as np
import pytest
from PIL import Image

from latteclip.demo import descriptions, textures
from latteclip.demo.textures import SOURCE, TARGET, Attributes


def attributes(classname="striped", **changes):
    values = {
        "foreground": "red",
        "background": "white",
        "size": "fine",
        "orientation": "diagonal",
        "finish": "crisp",
    }
    return Attributes(classname=classname, **(values | changes))


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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


def test_dataset_layout(tmp_path):
    textures.write_dataset(tmp_path / "data", train=30, test=20, gap=0.7, seed=3)
    split = json.loads((tmp_path / "data" / "split.json").read_text())
    assert {name: len(entries) for name, entries in split.items()} == {
        "train": 30,
        "val": 0,
        "test": 20,
    }
    entries = split["train"] + split["test"]
    assert len({path for path, _, _ in entries}) == 50
    for path, label, classname in entries:
        assert textures.CLASSNAMES[label] == classname == path.split("/")[1]
        with Image.open(tmp_path / "data" / path) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")


def test_dataset_holds_the_generated_images_of_two_streams(tmp_path):
    textures.write_dataset(tmp_path / "data", train=30, test=20, gap=0.7, seed=3)
    split = json.loads((tmp_path / "data" / "split.json").read_text())
    for stream, (name, n) in enumerate([("train", 30), ("test", 20)]):
        images, _ = textures.generate(n, 0.7, 3, stream=stream)
        for image, (path, _, _) in zip(images, split[name], strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "data" / path)), image)


def test_dataset_is_byte_identical_and_replaces_an_older_one(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "stale.txt").write_text("old")
    for name in ("a", "b"):
        textures.write_dataset(tmp_path / name, train=20, test=10, gap=0.5, seed=0)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_failed_dataset_leaves_the_older_one(tmp_path, monkeypatch):
    textures.write_dataset(tmp_path / "data", train=20, test=10, gap=0.5, seed=0)
    before = files_of(tmp_path)
    monkeypatch.setattr(Image.Image, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        textures.write_dataset(tmp_path / "data", train=20, test=10, gap=0.5, seed=1)
    assert files_of(tmp_path) == before


def test_image_descriptions_tell_the_attributes():
    assert descriptions.describe(attributes()) == (
        "a striped texture with thin diagonal red stripes on a white background, crisp."
    )
    plain = attributes("dotted", orientation=None, size="coarse", finish="soft")
    assert descriptions.describe(plain) == (
        "a dotted texture with large red dots on a white background, soft."
    )


def test_descriptions_name_every_drawn_attribute():
    for a in textures.generate(100, 0.7, 5)[1]:
        text = descriptions.describe(a)
        told = [a.classname, a.foreground, a.background, a.orientation or "", a.finish]
        assert all(word in text for word in told)
        assert len(text.split()) < 20
        captions = descriptions.short_captions(a)
        assert text in captions
        colours = {a.foreground, a.background}
        for caption in captions:
            assert set(caption.strip(".").split()) & set(textures.COLOURS) <= colours


def test_only_directional_classes_have_an_orientation():
    for a in textures.generate(100, 0.7, 5)[1]:
        assert (a.orientation is not None) == (a.classname in textures.DIRECTIONAL)


def test_group_descriptions_name_what_most_share():
    group = [attributes()] * 3 + [attributes("dotted", orientation=None, foreground="navy")]
    assert descriptions.describe_group(group) == (
        "mostly striped textures with thin diagonal red stripes on white backgrounds, crisp."
    )


@pytest.mark.parametrize(
    ("classnames", "start"),
    [
        ("dotted dotted dotted dotted", "dotted textures"),
        ("dotted dotted dotted grid", "mostly dotted textures"),
        ("dotted grid dotted woven", "partly dotted textures"),
        ("woven grid woven grid", "grid and woven textures"),
        ("dotted grid woven marbled", "various textures"),
    ],
)
def test_group_descriptions_say_how_common_the_class_is(classnames, start):
    group = [attributes(name, orientation=None) for name in classnames.split()]
    assert descriptions.describe_group(group).startswith(start)


def test_group_descriptions_fall_back_to_tones_and_leave_out_the_rest():
    colours = [
        ("red", "white", "soft"),
        ("navy", "beige", "crisp"),
        ("black", "yellow", "faded"),
        ("blue", "pink", "grainy"),
    ]
    group = [
        attributes(foreground=f, background=b, finish=x, orientation=o)
        for (f, b, x), o in zip(colours, ("vertical", "diagonal") * 2, strict=True)
    ]
    assert descriptions.describe_group(group) == (
        "striped textures with thin dark stripes on light backgrounds."
    )
    with pytest.raises(ValueError, match="four"):
        descriptions.describe_group(group[:3])
