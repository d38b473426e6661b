import unicodedata

import pytest
from support.image_folders import coop, folders, images, index

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.tables import IndexMetadata
from latteclip.data.splits import IndexSettings, read_split


def read(root, kind="folders", **settings):
    return read_split(root, IndexSettings(kind=kind, **settings))


def listed(split):
    """Its images without their paths."""
    return [item[:3] for item in split.items]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("coop", "[" * 100_000, "/split must"),
        ("coop", '{"trian": []}', "trian"),
        ("coop", '{"train": [["a", "0", "x"]], "test": []}', "train.0.1"),
        ("coop", '{"train": [], "test": []}', "no image"),
        ("coop", '{"train": [["a", 0, "x"], ["b", 0, "y"]], "test": []}', "one class name"),
        ("coop", '{"train": [["a", 0, "x"]], "test": [["a", 0, "x"]]}', "'a'"),
        ("csv", "file,label\na.jpg,cat\n", "columns file"),
        ("csv", "path,label,split\na.jpg,cat,tset\n", "tset"),
        ("csv", "path,label\na.jpg,cat,test\n", "line 2"),
        ("csv", "path,label,classname\na.jpg,0,cat\nb.jpg,1,dog\nc.jpg,2,\n", "c.jpg.*2"),
        ("csv", "path,label\na.jpg,0\nb.jpg,1\n", "classes.txt"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, kind, content, message):
    (tmp_path / "split").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path, kind, file="split")


# Tables and lists.


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table_of_class_names(tmp_path, separator):
    images(tmp_path, "pictures/a.jpg", "pictures/b.jpg", "pictures/c.jpg")

    def table(text):
        text = text.replace(",", separator)
        (tmp_path / "split.csv").write_text(text, encoding="utf-8-sig")
        return read(tmp_path, "csv", images="pictures")

    split = table("path,label,split\na.jpg,dog,train\nb.jpg,cat,test\nc.jpg,,Train\n")
    assert split.names == ["cat", "dog"]
    wanted = [("a.jpg", "train", 1), ("b.jpg", "test", 0), ("c.jpg", "train", None)]
    assert listed(split) == wanted
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    split = table("path,label,split\na.jpg,1,train\nb.jpg,0,test\nc.jpg,cat,test\n")
    assert [item.label for item in split.items] == [1, 0, 1]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_a_table_and_of_files_may_be_written_in_two_ways(tmp_path, forms):
    listed, there = (unicodedata.normalize(form, "café/é.jpg") for form in forms)
    images(tmp_path, f"pictures/{there}")
    (tmp_path / "split.csv").write_text(f"path,label\n{listed},dog\n", encoding="utf-8")
    split = read(tmp_path, "csv")
    assert split.folder == tmp_path / "pictures"
    assert [(item.image_id, item.path) for item in split.items] == [(listed, there)]


def test_lists_may_have_spaces_in_names_of_images_and_classes(tmp_path):
    names = ["a.jpg", "my photo.png", "one two three.JPG", "b.jpg"]
    images(tmp_path, *names)
    (tmp_path / "train.txt").write_text("a.jpg cat\nmy photo.png big cat\n")
    (tmp_path / "test.txt").write_text("one two three.JPG cat\nb.jpg big cat\n")
    split = read(tmp_path, "lists", lists={"train": "train.txt", "test": "test.txt"})
    assert split.names == ["big cat", "cat"]
    wanted = zip(names, ["train", "train", "test", "test"], [1, 0, 1, 0], strict=True)
    assert listed(split) == list(wanted)


# Where files lie.


def test_missing_files_and_wrong_numbers_are_named(tmp_path):
    with pytest.raises(UserError, match=r"split\.json"):
        read(tmp_path, "coop")
    coop(tmp_path, [["a.jpg", 0, "a"], ["b.jpg", 1, "b"]], [["c.jpg", 1, "b"]])
    with pytest.raises(UserError, match=r"a\.jpg"):
        read(tmp_path, "coop", images="pictures")
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    read(tmp_path, "coop", counts={"train": 2, "test": 1, "classes": 2})
    with pytest.raises(UserError, match=r"'train': 2.*'classes': 2.*'train': 3"):
        read(tmp_path, "coop", counts={"train": 3, "test": 1, "classes": 4})


# Class folders.


def test_class_folders_are_split_by_a_hash_that_other_images_do_not_change(tmp_path):
    before = read(folders(tmp_path, n=60))
    after = read(folders(tmp_path, classes=("cat", "dog", "train"), n=70))
    assert before.names == ["cat", "dog"] and after.names == ["cat", "dog", "train"]
    assert {item[:2] for item in before.items} < {item[:2] for item in after.items}
    share = sum(item.split == "test" for item in after.items) / len(after.items)
    assert 0.2 < share < 0.4


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (
            None,
            {
                "Training/cat/1.jpg": ("train", 0),
                "VALID/cat/2.JPEG": ("val", 0),
                "test/cat/deep/4.jpg": ("test", 0),
                "test/dog/3.png": ("test", 1),
            },
        ),
        (
            None,
            {
                "train/1.jpg": ("train", None),
                "test/cat/3.jpg": ("test", 0),
                "test/dog/4.jpg": ("test", 1),
            },
        ),
        (
            "dog\nBig cat\n",
            {
                "train/2024/1.jpg": ("train", None),
                "train/dog/2.jpg": ("train", 0),
                "test/dog/3.jpg": ("test", 0),
                "test/big_cat/4.jpg": ("test", 1),
            },
        ),
    ],
)
def test_train_and_test_folders(tmp_path, caplog, classes, wanted):
    images(tmp_path, *wanted, "extra/5.jpg")
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    items = read(tmp_path).items
    assert {item.image_id: (item.split, item.label) for item in items} == wanted
    assert "extra/5.jpg" in caplog.text
    says = "in folders that are no classes stay unlabelled: 2024 ("
    assert (says in caplog.text) == bool(classes)


def test_unlabelled_images_with_a_file_of_class_names(tmp_path):
    images(tmp_path, *(f"{n}.jpg" for n in range(40)))
    (tmp_path / "classes.txt").write_text("zebra\n\n  Fire_Truck \n")
    rows, names, _ = index(tmp_path, tmp_path)
    assert names == ["zebra", "fire truck"]
    metadata = tables.read_metadata(tmp_path / "out" / "images.parquet", IndexMetadata)
    assert metadata.written_names == {"fire truck": "Fire_Truck"}
    assert {(row["label"], row["split"]) for row in rows} == {(None, "train")}


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["big_cat/1.jpg", "Big cat/2.jpg"], None, "are both 'big cat' after clean-up"),
        # As Linux and macOS write it.
        (["caf\u00e9/1.jpg", "cafe\u0301/2.jpg"], None, "café"),
        (["cat/1.jpg", "_/2.jpg"], None, "'_'"),
        (["cat/1.jpg"], None, "at least two classes"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], None, "no usable image in the split test"),
        (["train/a/1.jpg", "test/b/1.jpg", "test/c/2.jpg"], None, "train has the folders"),
        (["test/dog/2.jpg", "test/dgo/3.jpg"], "dog\ncat\n", "dgo .*classes"),
        (["train/1.jpg", "test/cat/2.jpg"], "discover", "class_names"),
    ],
)
def test_what_is_wrong_with_class_folders_is_said(tmp_path, names, classes, message):
    images(tmp_path, *names)
    settings = {}
    if classes == "discover":
        settings = {"class_names": classes}
    elif classes:
        (tmp_path / "classes.txt").write_text(classes)
    with pytest.raises(UserError, match=message):
        index(tmp_path, tmp_path, **settings)
