import logging
import os

import pytest
from support.image_folders import folders, images, index
from support.permissions import as_nobody

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.data.splits import Item, SplitSettings, read_split


def test_class_folders_are_split_by_a_hash_that_other_images_do_not_change(tmp_path):
    folders(tmp_path / "a", n=60)
    before = read_split(tmp_path / "a", SplitSettings("folders"))[1]
    folders(tmp_path / "a", classes=("cat", "dog", "eel"), n=70)
    after = read_split(tmp_path / "a", SplitSettings("folders"))[1]
    assert before.names == ["cat", "dog"] and after.names == ["cat", "dog", "eel"]
    assert {(i.image_id, i.split) for i in before.items} < {
        (i.image_id, i.split) for i in after.items
    }
    share = sum(item.split == "test" for item in after.items) / len(after.items)
    assert 0.2 < share < 0.4


@pytest.mark.parametrize("seed", range(3))
def test_a_handful_of_images_has_both_splits(tmp_path, seed):
    """Their hashes often are on one side."""
    images(tmp_path, f"cat/{seed}.jpg", f"dog/{seed}.jpg")
    split = read_split(tmp_path, SplitSettings("folders"))[1]
    assert sorted(item.split for item in split.items) == ["test", "train"]


def test_train_and_test_folders(tmp_path):
    images(tmp_path, "train/cat/1.jpg", "val/cat/2.JPEG", "test/dog/3.png", "test/cat/deep/4.jpg")
    split = read_split(tmp_path, SplitSettings("folders"))[1]
    assert split.items == [
        Item("train/cat/1.jpg", "train", 0),
        Item("val/cat/2.JPEG", "val", 0),
        Item("test/cat/deep/4.jpg", "test", 0),
        Item("test/dog/3.png", "test", 1),
    ]


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path):
    folders(tmp_path)
    images(tmp_path, "cat/.hidden.jpg", "cat/._1.jpg", "__MACOSX/x/1.jpg", ".git/2.jpg")
    images(tmp_path, "cat/notes.txt", "cat/.thumbnails/3.jpg", "@eaDir/x.jpg", "cat/@eaDir/1.jpg")
    images(tmp_path, "#recycle/1.jpg", "$RECYCLE.BIN/1.jpg", "Thumbs.db", "lost+found/1.jpg")
    split = read_split(tmp_path, SplitSettings("folders"))[1]
    assert len(split.items) == 20 and split.names == ["cat", "dog"]
    assert split.skipped == {".txt": 1}


def test_unlabelled_training_images(tmp_path):
    images(tmp_path, "train/1.jpg", "train/2.jpg", "test/cat/3.jpg", "test/dog/4.jpg")
    rows, names, _ = index(tmp_path, tmp_path)
    assert names == ["cat", "dog"]
    assert [(r["image_id"], r["label"], r["classname"]) for r in rows] == [
        ("train/1.jpg", None, None),
        ("train/2.jpg", None, None),
        ("test/cat/3.jpg", 0, "cat"),
        ("test/dog/4.jpg", 1, "dog"),
    ]


def test_unlabelled_images_with_a_file_of_class_names(tmp_path):
    images(tmp_path, *(f"{n}.jpg" for n in range(40)))
    (tmp_path / "classes.txt").write_text("zebra\n\n  Fire_Truck \n")
    rows, names, _ = index(tmp_path, tmp_path)
    assert names == ["zebra", "fire truck"]
    written = tables.read_written_names(tmp_path / "out" / "images.parquet")
    assert written == {"fire truck": "Fire_Truck"}
    assert {row["label"] for row in rows} == {None}
    assert [row["split"] for row in rows] == ["train"] * 40


def test_beside_class_folders_unlabelled_images_are_for_training(tmp_path):
    images(folders(tmp_path, n=30), *(f"{n}.jpg" for n in range(40)))
    split = read_split(tmp_path, SplitSettings("folders"))[1]
    assert {item.split for item in split.items if item.label is None} == {"train"}
    assert {item.split for item in split.items if item.label is not None} == {"train", "test"}


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images(tmp_path, *(f"{n}.jpg" for n in range(3)), "a.MOV", "b.mov", "c.dng", "d.tar\udcff", "e")
    images(tmp_path, "f.one two", ".hidden.mov", "deep/g.mov")
    (tmp_path / "classes.txt").write_text("deep\ncat\n")
    index(tmp_path, tmp_path)
    skipped = tables.read_metadata(tmp_path / "out" / "images.parquet", "image_id")["skipped"]
    assert skipped == {".mov": 3, "other": 3, ".dng": 1}
    assert "Left out 7 files that are no images: 3 .mov, 3 other, 1 .dng." in caplog.text


def test_a_file_of_class_names_gives_the_order_and_other_train_folders_are_unlabelled(tmp_path):
    images(tmp_path, "train/2024/1.jpg", "train/dog/2.jpg", "test/dog/3.jpg", "test/big_cat/4.jpg")
    (tmp_path / "classes.txt").write_text("dog\nBig cat\n")
    split = read_split(tmp_path, SplitSettings("folders"))[1]
    assert {item.image_id: item.label for item in split.items} == {
        "train/2024/1.jpg": None,
        "train/dog/2.jpg": 0,
        "test/dog/3.jpg": 0,
        "test/big_cat/4.jpg": 1,
    }


def test_a_test_folder_that_is_no_class_is_an_error(tmp_path):
    images(tmp_path, "train/1.jpg", "test/dog/2.jpg", "test/dgo/3.jpg")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=r"dgo .*classes\.txt"):
        read_split(tmp_path, SplitSettings("folders"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["big_cat/1.jpg", "Big cat/2.jpg"], "are both 'big cat' after clean-up"),
        (["cat/1.jpg"], "at least two classes"),
        (["1.jpg"], "holds no class folders"),
        (["cat/1.jpg", "dog/1.txt"], "dog holds no image"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], "not both of train and test"),
        (["train/all/1.jpg", "test/cat/1.jpg", "test/dog/2.jpg"], "no class in common"),
        (["train/cat/1.jpg", "test/cat/1.txt", "train/dog/1.jpg"], "no image for the test split"),
    ],
)
def test_what_is_wrong_with_class_folders_is_said(tmp_path, names, message):
    images(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path, SplitSettings("folders"))


UNREADABLE = [
    ("cat/deep/deeper", None),
    ("other", "cat\ndog\n"),
    ("test", None),
]


@pytest.mark.parametrize(("name", "classes"), UNREADABLE)
def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(open_folder, name, classes):
    tops = ("train/", "test/") if name.startswith("test") else ("",)
    images(
        open_folder, *(f"{top}{c}/{n}.jpg" for top in tops for c in ("cat", "dog") for n in "12")
    )
    images(open_folder, f"{name}/1.jpg")
    if classes:
        (open_folder / "classes.txt").write_text(classes)
    (open_folder / name).chmod(0)
    with as_nobody(), pytest.raises(UserError, match=name):
        read_split(open_folder, SplitSettings("folders", test_fraction=0.5))


def test_a_name_that_is_not_text_is_an_error(tmp_path):
    folders(tmp_path)
    images(tmp_path, "cat/\udcff.jpg")
    with pytest.raises(UserError, match="UTF-8"):
        read_split(tmp_path, SplitSettings("folders"))


def test_a_list_that_is_no_regular_file_is_an_error(tmp_path):
    os.mkfifo(folders(tmp_path) / "classes.txt")
    with pytest.raises(UserError, match=r"classes\.txt"):
        read_split(tmp_path, SplitSettings("folders"))
