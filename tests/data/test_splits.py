import json

import pytest
from support.image_folders import COOP_SPLITS, coop, images

from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError
from latteclip.data.splits import SplitSettings, read_split


def test_lists_with_slashes_in_class_names(tmp_path):
    (tmp_path / "variants.txt").write_text("F-16A/B\nF/A-18\n")
    (tmp_path / "one.txt").write_text("001 F/A-18\n002 F-16A/B\n")
    (tmp_path / "two.txt").write_text("003 F/A-18\n")
    images(tmp_path, "images/001.jpg")
    settings = SplitSettings(
        "lists",
        lists={"train": "one.txt", "test": "two.txt"},
        suffix=".jpg",
        classes="variants.txt",
        images="images",
    )
    split = read_split(tmp_path, settings)[1]
    assert split.names == ["F-16A/B", "F/A-18"]
    assert [(i.image_id, i.split, i.label) for i in split.items] == [
        ("001.jpg", "train", 1),
        ("002.jpg", "train", 0),
        ("003.jpg", "test", 1),
    ]


@pytest.mark.parametrize("key", ["caltech101", "fgvc_aircraft", "stanford_cars", "ucf101"])
def test_class_names_stay_different_after_clean_up(key):
    if not COOP_SPLITS.is_dir():
        pytest.skip("no splits of CoOp beside the repository (../shared/data/coop_splits)")
    names = json.loads((COOP_SPLITS / "classnames.json").read_text())[key]
    cleaned = clean_classnames(names, {"_": " ", ".": " "})
    assert len(set(cleaned)) == len(names)


# Where things lie.


def test_a_mirror_with_another_top_folder_is_understood(tmp_path):
    images(tmp_path, "mirror/dtd/images/a/1.jpg", "mirror/dtd/images/b/2.jpg")
    coop(tmp_path / "mirror", [["a/1.jpg", 0, "a"]], [["b/2.jpg", 1, "b"]])
    settings = SplitSettings("coop", file="split.json", images="dtd/images")
    found, split = read_split(tmp_path, settings)
    assert found == tmp_path / "mirror" / "dtd" / "images" and len(split.items) == 2


def test_missing_images_and_split_files_are_named(tmp_path):
    settings = SplitSettings("coop", file="split.json", images="pictures")
    with pytest.raises(UserError, match=r"split\.json"):
        read_split(tmp_path, settings)
    coop(tmp_path, [["a/1.jpg", 0, "a"]], [["b/2.jpg", 1, "b"]])
    with pytest.raises(UserError, match=r"a/1\.jpg"):
        read_split(tmp_path, settings)
    with pytest.raises(UserError, match="does not exist"):
        read_split(tmp_path / "no", settings)


def test_a_wrong_number_of_images_shows_both_numbers(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    coop(tmp_path, [["a.jpg", 0, "a"], ["b.jpg", 1, "b"]], [["c.jpg", 1, "b"]])
    read_split(tmp_path, SplitSettings("coop", counts={"train": 2, "test": 1, "classes": 2}))
    with pytest.raises(UserError, match=r"2 train .*3 .*2 classes .*4"):
        read_split(tmp_path, SplitSettings("coop", counts={"train": 3, "test": 1, "classes": 4}))
