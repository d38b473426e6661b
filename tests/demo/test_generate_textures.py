import json

import pytest
from PIL import Image

from latteclip.core.errors import UserError
from latteclip.demo import textures
from latteclip.demo.generate_textures import TextureSettings, generate_textures


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_dataset_layout(tmp_path):
    generate_textures(TextureSettings(30, 20, 0.7, seed=3), tmp_path / "data")
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


def test_dataset_is_byte_identical(tmp_path):
    for name in ("a", "b"):
        generate_textures(TextureSettings(20, 10, 0.5, seed=0), tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_dataset_replaces_no_folder_with_content(tmp_path):
    generate_textures(TextureSettings(20, 10, 0.5, seed=0), tmp_path / "data")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="data"):
        generate_textures(TextureSettings(20, 10, 0.5, seed=1), tmp_path / "data")
    assert files_of(tmp_path) == before
