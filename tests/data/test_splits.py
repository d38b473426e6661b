import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.image_folders import coop, folders, images, index

from latteclip.config.sections.split import SplitSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import IndexMetadata
from latteclip.data.splits import read_split

# Splits of any form: a valid one, or one clear error.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), inner, max_size=4)
    ),
)


ROW = st.tuples(
    st.sampled_from(["a.jpg", "b/a.jpg", "b.jpg", "../x", "/x", "", "\0", "\ud800"]),
    st.integers(-1, 3) | st.booleans(),
    st.sampled_from(["cat", "dog", "", "\ud800"]),
)


NEARLY = st.fixed_dictionaries(
    {"train": st.lists(ROW | JSON, max_size=3), "test": st.lists(ROW, max_size=3)},
    optional={"val": st.lists(ROW, max_size=2)},
)


def listed(split):
    """Its images without their paths."""
    return [item[:3] for item in split.items]


@given((JSON | NEARLY).map(json.dumps).map(str.encode) | st.binary(max_size=40))
def test_any_json_is_a_split_or_one_error(content):
    with tempfile.TemporaryDirectory() as place:
        images(Path(place), "a.jpg", "b/a.jpg", "b.jpg")
        Path(place, "split.json").write_bytes(content)
        try:
            _, split = read_split(Path(place), SplitSection(kind="coop"))
        except UserError as error:
            assert str(error) and "\n" not in str(error).strip()
            return
    ids = [item.image_id for item in split.items]
    assert ids and len(set(ids)) == len(ids)
    for item in split.items:
        assert item.split in ("train", "val", "test") and 0 <= item.label < len(split.names)
        assert (
            not Path(item.image_id).is_absolute() and ".." not in Path(item.image_id).parts
        )
        item.image_id.encode()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("coop", "[" * 100_000, "/split:"),
        ("coop", '{"train": []}', "test"),
        ("coop", '{"train": [], "test": []}', "no image"),
        ("coop", '{"train": [["a", 0, "x"], ["b", 0, "y"]], "test": []}', "label 0"),
        ("coop", '{"train": [["a", 0, "x"]], "test": [["a", 0, "x"]]}', "'a'"),
        ("coop", '{"train": [["../a", 0, "x"]], "test": []}', "../a"),
        ("csv", "file,label\na.jpg,cat\n", "column"),
        ("csv", "path,label,split\na.jpg,cat,tset\n", "tset"),
        ("csv", "path,label\na.jpg,cat,test\n", "line 2"),
        ("csv", "path,label\na.jpg,cat\na.jpg,dog\n", "a.jpg"),
        ("csv", "path,label\n../a.jpg,cat\n", "../a.jpg"),
        (
            "csv",
            "path,label,classname\na.jpg,0,cat\nb.jpg,1,dog\nc.jpg,2,\n",
            "c.jpg.*'?2'?",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, kind, content, message):
    (tmp_path / "split").write_text(content)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path, SplitSection(kind=kind, file="split"))


# Tables and lists.


def table(tmp_path, text):
    (tmp_path / "split.csv").write_text(text, encoding="utf-8-sig")
    images(tmp_path, "pictures/a.jpg", "pictures/b.jpg", "pictures/c.jpg")
    return read_split(tmp_path, SplitSection(kind="csv", images="pictures"))[1]


def test_a_table_of_class_names(tmp_path):
    split = table(
        tmp_path, "path,label,split\na.jpg,dog,train\nb.jpg,cat,test\nc.jpg,,Train\n"
    )
    assert split.names == ["cat", "dog"]
    assert listed(split) == [
        ("a.jpg", "train", 1),
        ("b.jpg", "test", 0),
        ("c.jpg", "train", None),
    ]
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    split = table(
        tmp_path, "path,label,split\na.jpg,1,train\nb.jpg,0,test\nc.jpg,cat,test\n"
    )
    assert [item.label for item in split.items] == [1, 0, 1]


# Lists, and where files lie.


def test_a_mirror_with_another_top_folder_is_understood(tmp_path):
    images(tmp_path, "mirror/dtd/images/a/1.jpg", "mirror/dtd/images/b/2.jpg")
    coop(tmp_path / "mirror", [["a/1.jpg", 0, "a"]], [["b/2.jpg", 1, "b"]])
    settings = SplitSection(kind="coop", file="split.json", images="dtd/images")
    found, split = read_split(tmp_path, settings)
    assert found == tmp_path / "mirror" / "dtd" / "images" and len(split.items) == 2


def test_missing_images_and_split_files_are_named(tmp_path):
    settings = SplitSection(kind="coop", images="pictures")
    with pytest.raises(UserError, match=r"split\.json"):
        read_split(tmp_path, settings)
    coop(tmp_path, [["a/1.jpg", 0, "a"]], [["b/2.jpg", 1, "b"]])
    with pytest.raises(UserError, match=r"a/1\.jpg"):
        read_split(tmp_path, settings)


def test_a_wrong_number_of_images_shows_both_numbers(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    coop(tmp_path, [["a.jpg", 0, "a"], ["b.jpg", 1, "b"]], [["c.jpg", 1, "b"]])
    read_split(
        tmp_path, SplitSection(kind="coop", counts={"train": 2, "test": 1, "classes": 2})
    )
    with pytest.raises(
        UserError, match=r"'train': 2.*'classes': 2.*'train': 3.*'classes': 4"
    ):
        read_split(
            tmp_path,
            SplitSection(kind="coop", counts={"train": 3, "test": 1, "classes": 4}),
        )


# Class folders.


def test_class_folders_are_split_by_a_hash_that_other_images_do_not_change(tmp_path):
    folders(tmp_path / "a", n=60)
    before = read_split(tmp_path / "a", SplitSection(kind="folders"))[1]
    folders(tmp_path / "a", classes=("cat", "dog", "eel"), n=70)
    after = read_split(tmp_path / "a", SplitSection(kind="folders"))[1]
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
    split = read_split(tmp_path, SplitSection(kind="folders"))[1]
    assert sorted(item.split for item in split.items) == ["test", "train"]


def test_train_and_test_folders(tmp_path):
    images(
        tmp_path,
        "train/cat/1.jpg",
        "val/cat/2.JPEG",
        "test/dog/3.png",
        "test/cat/deep/4.jpg",
    )
    split = read_split(tmp_path, SplitSection(kind="folders"))[1]
    assert listed(split) == [
        ("train/cat/1.jpg", "train", 0),
        ("val/cat/2.JPEG", "val", 0),
        ("test/cat/deep/4.jpg", "test", 0),
        ("test/dog/3.png", "test", 1),
    ]


def test_litter_is_passed_over_and_other_files_are_counted_by_suffix(tmp_path, caplog):
    images(tmp_path, "cat/.hidden.jpg", "cat/._1.jpg", "__MACOSX/x/1.jpg", ".git/2.jpg")
    images(
        tmp_path, "cat/.thumbnails/3.jpg", "@eaDir/x.jpg", "cat/@eaDir/1.jpg", ".hidden.mov"
    )
    images(
        tmp_path, "#recycle/1.jpg", "$RECYCLE.BIN/1.jpg", "Thumbs.db", "lost+found/1.jpg"
    )
    images(
        tmp_path,
        *(f"{n}.jpg" for n in range(3)),
        "a.MOV",
        "b.mov",
        "c.dng",
        "d.tar\udcff",
        "e",
    )
    images(tmp_path, "f.one two", "cat/g.mov")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    rows, _, _ = index(tmp_path, tmp_path)
    assert {row["image_id"] for row in rows} == {"0.jpg", "1.jpg", "2.jpg"}
    skipped = tables.read_metadata(
        tmp_path / "out" / "images.parquet", IndexMetadata
    ).skipped
    assert skipped == {".mov": 3, "other": 3, ".dng": 1}
    assert "Left out 7 files that are no images: 3 .mov, 3 other, 1 .dng." in caplog.text


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
    written = tables.read_metadata(
        tmp_path / "out" / "images.parquet", IndexMetadata
    ).written_names
    assert written == {"fire truck": "Fire_Truck"}
    assert {row["label"] for row in rows} == {None}
    assert [row["split"] for row in rows] == ["train"] * 40


def test_a_file_of_class_names_gives_the_order_and_other_train_folders_are_unlabelled(
    tmp_path,
):
    images(
        tmp_path,
        "train/2024/1.jpg",
        "train/dog/2.jpg",
        "test/dog/3.jpg",
        "test/big_cat/4.jpg",
    )
    (tmp_path / "classes.txt").write_text("dog\nBig cat\n")
    split = read_split(tmp_path, SplitSection(kind="folders"))[1]
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
        read_split(tmp_path, SplitSection(kind="folders"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["big_cat/1.jpg", "Big cat/2.jpg"], "are both 'big cat' after clean-up"),
        (["cat/1.jpg"], "at least two classes"),
        (["1.jpg"], "holds no class folders"),
        (["cat/1.jpg", "dog/1.txt"], "dog holds no image"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], "both train and test"),
        (["train/all/1.jpg", "test/cat/1.jpg", "test/dog/2.jpg"], "no class in common"),
    ],
)
def test_what_is_wrong_with_class_folders_is_said(tmp_path, names, message):
    images(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path, SplitSection(kind="folders"))


def test_a_folder_that_cannot_be_read_is_named():
    is_root = os.geteuid() == 0  # who may read everything
    with tempfile.TemporaryDirectory() as name:
        images(Path(name), "cat/1.jpg", "dog/1.jpg", "cat/deep/deeper/2.jpg")
        hidden = Path(name, "cat/deep/deeper")
        hidden.chmod(0)
        Path(name).chmod(0o755)
        try:
            os.seteuid(65534 if is_root else os.geteuid())
            with pytest.raises(UserError, match="cat/deep/deeper"):
                read_split(Path(name), SplitSection(kind="folders", test_fraction=0.5))
        finally:
            os.seteuid(0 if is_root else os.geteuid())
            hidden.chmod(0o755)


def test_a_name_that_is_not_text_is_an_error(tmp_path):
    folders(tmp_path)
    images(tmp_path, "cat/\udcff.jpg")
    with pytest.raises(UserError, match="UTF-8"):
        read_split(tmp_path, SplitSection(kind="folders"))


def test_test_folders_with_class_names_contradict_discovered_classes(tmp_path):
    images(tmp_path, "train/1.jpg", "test/cat/2.jpg")
    with pytest.raises(UserError, match=r"split\.classes"):
        read_split(tmp_path, SplitSection(kind="folders", classes="discover"))
