import json

import pytest
from PIL import Image

from latteclip.config.sections.textures import TexturesSection
from latteclip.core.errors import UserError
from latteclip.demo import generate_textures as textures
from latteclip.demo.generate_textures import generate_textures


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_dataset_layout(tmp_path):
    generate_textures(
        TexturesSection(train=30, test=20, gap=0.7, seed=3), tmp_path / "data"
    )
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


def test_a_dataset_has_the_same_bytes_each_time_and_replaces_no_folder(tmp_path):
    for name in ("first", "second"):
        generate_textures(
            TexturesSection(train=20, test=10, gap=0.5, seed=0), tmp_path / name
        )
    before = files_of(tmp_path / "first")
    assert before == files_of(tmp_path / "second")
    with pytest.raises(UserError, match="first"):
        generate_textures(
            TexturesSection(train=20, test=10, gap=0.5, seed=1), tmp_path / "first"
        )
    assert files_of(tmp_path / "first") == before
    assert {p.name for p in tmp_path.iterdir()} == {"first", "second"}


@pytest.mark.parametrize("other", [{"seed": 6}, {"stream": 1}, {"gap": 0.6}])
def test_seed_stream_and_gap_matter(other):
    images, _ = textures.generate(40, **{"gap": 0.7, "seed": 5})
    others, _ = textures.generate(40, **({"gap": 0.7, "seed": 5} | other))
    assert not (images == others).all(axis=(1, 2, 3)).any()


def test_every_class_is_drawn_with_contrast():
    images, named = textures.generate(280, 0.0, 5)
    assert {a.classname for a in named} == set(textures.CLASSNAMES)
    assert images.std(axis=(1, 2)).max(axis=1).min() > 5
