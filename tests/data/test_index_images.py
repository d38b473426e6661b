import csv
import json
import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.tiny import SHARED
from support.web import jpeg

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.prompts import clean_classnames
from latteclip.data import index_images, split_files, workers
from latteclip.data.images import size_of
from latteclip.data.loader import open_rgb
from latteclip.data.split_files import Item
from latteclip.data.splits import SplitSettings, read_split

COOP_SPLITS = SHARED / "data" / "coop_splits"
KEYS = {  # split file -> key of classnames.json, train+val and test images
    "Caltech101": ("caltech101", 5777, 2465),
    "DescribableTextures": ("dtd", 3948, 1692),
    "EuroSAT": ("eurosat", 18900, 8100),
    "OxfordFlowers": ("flower102", 5726, 2463),
    "OxfordPets": ("oxford_pets", 3680, 3669),
    "StanfordCars": ("stanford_cars", 8144, 8041),
    "UCF101": ("ucf101", 9537, 3783),
}


def images(root, *names, content=None):
    """Write small JPEGs."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg() if content is None else content)


def folders(root, classes=("cat", "dog"), n=10):
    images(root, *(f"{name}/{i}.jpg" for name in classes for i in range(n)))
    return root


def coop(root, train, test, name="split.json"):
    (root / name).write_text(json.dumps({"train": train, "val": [], "test": test}))


def index(root, tmp_path, threads=1, **settings):
    """Index a folder; its rows, class names and broken images."""
    output, corrupt = tmp_path / "out" / "images.parquet", tmp_path / "out" / "corrupt.csv"
    settings = SplitSettings(**({"kind": "folders"} | settings))
    index_images.index_images(str(root), settings, str(output), str(corrupt), threads=threads)
    table, metadata = tables.read(output, tables.IMAGES)
    with corrupt.open(newline="") as file:
        return table.to_pylist(), metadata["classnames"], list(csv.DictReader(file))


@pytest.mark.parametrize("name", KEYS)
def test_the_splits_of_coop(name):
    if not COOP_SPLITS.is_dir():
        pytest.skip("no splits of CoOp beside the repository (../shared/data/coop_splits)")
    key, train, test = KEYS[name]
    split = split_files.read_coop(COOP_SPLITS / f"split_zhou_{name}.json")
    assert split.names == json.loads((COOP_SPLITS / "classnames.json").read_text())[key]
    counts = Counter(item.split for item in split.items)
    assert (counts["train"] + counts["val"], counts["test"]) == (train, test)


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


def is_valid(split):
    ids = [item.image_id for item in split.items]
    assert ids and len(set(ids)) == len(ids)
    for item in split.items:
        assert item.split in ("train", "val", "test")
        assert item.label is None or 0 <= item.label < len(split.names)
        assert not Path(item.image_id).is_absolute() and ".." not in Path(item.image_id).parts
        item.image_id.encode()
    return True


def read_text(reader, text, *more, name="split"):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return reader(path, *more)
        except UserError as error:
            assert str(error) and "\n" not in str(error).strip()
            return None


@given(JSON | NEARLY)
def test_any_json_is_a_split_or_one_error(content):
    split = read_text(split_files.read_coop, json.dumps(content))
    if split is not None:
        assert is_valid(split) and set(content) <= {"train", "val", "test"}


@given(
    st.lists(
        st.tuples(st.text("ab/ü ", min_size=1).map("x{}".format), st.integers(0, 2)),
        min_size=1,
        unique_by=lambda row: row[0],
    ),
    st.sampled_from(["train", "val", "test"]),
)
def test_a_valid_split_is_given_back(rows, split):
    labels = {label: i for i, label in enumerate(sorted({label for _, label in rows}))}
    rows = [[image_id, labels[label], f"class {label}"] for image_id, label in rows]
    content = {"train": [], "test": []} | {split: rows}
    read = read_text(split_files.read_coop, json.dumps(content))
    assert [[i.image_id, i.label, read.names[i.label]] for i in read.items] == rows
    assert {item.split for item in read.items} == {split}


@given(st.binary(max_size=40))
def test_any_file_is_a_split_or_one_error(content):
    assert read_text(split_files.read_coop, content) is None


@given(
    st.sampled_from(["path,label,split", "path,classname", "path", "path,label,classname", "x,y"]),
    st.lists(
        st.lists(
            st.sampled_from(["a.jpg", "b.jpg", "cat", "0", "1", "test", "train", "", "../x", '"']),
            max_size=4,
        ),
        max_size=4,
    ),
)
def test_any_table_is_a_split_or_one_error(header, rows):
    text = "\n".join([header, *(",".join(row) for row in rows)])
    split = read_text(split_files.read_csv, text, None, 0.3)
    assert split is None or is_valid(split)


@given(
    st.lists(st.text("ab ./", min_size=1, max_size=6), max_size=4),
    st.lists(st.text("ab /", max_size=4), max_size=3),
)
def test_any_list_is_a_split_or_one_error(lines, names):
    with tempfile.TemporaryDirectory() as place:
        classes = Path(place, "classes.txt")
        classes.write_text("\n".join(names))
        split = read_text(
            lambda path: split_files.read_lists({"train": path}, classes, ".jpg"), "\n".join(lines)
        )
    assert split is None or not split.items or is_valid(split)


@given(st.dictionaries(st.text("ab1", min_size=1, max_size=3), st.booleans(), min_size=1))
def test_a_csv_gives_back_what_was_written(rows):
    lines = ["path,classname,split"]
    lines += [f"{name}.jpg,{'cat' if cat else 'dog'},test" for name, cat in rows.items()]
    split = read_text(split_files.read_csv, "\n".join(lines), None, 0.3)
    assert {Path(i.image_id).stem: split.names[i.label] for i in split.items} == {
        name: "cat" if cat else "dog" for name, cat in rows.items()
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"train": []}', "keys train, test"),
        ('{"train": {}, "test": []}', "train must be a list"),
        ('{"train": [], "test": []}', "lists no image"),
        ('{"train": [["a.jpg", 0]], "test": []}', "not .path, label, classname"),
        ('{"train": [["a", 0, "x"], ["b", 0, "y"]], "test": []}', "label 0 is both 'x' and 'y'"),
        ('{"train": [["a", 0, "x"], ["b", 2, "y"]], "test": []}', "1 is missing"),
        ('{"train": [["a", 0, "x"]], "test": [["a", 0, "x"]]}', "1 images twice, the first 'a'"),
        ('{"train": [["../a", 0, "x"]], "test": []}', "no path inside"),
        ('{"train": [["a", 1000000000000000, "x"]], "test": []}', "0 is missing"),
    ],
)
def test_what_is_wrong_with_a_coop_split_is_said(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(UserError, match=message):
        split_files.read_coop(tmp_path / "split.json")


# Class folders.


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
    images(tmp_path, "cat/notes.txt", "cat/.thumbnails/3.jpg")
    split = read_split(tmp_path, SplitSettings("folders"))[1]
    assert len(split.items) == 20 and split.names == ["cat", "dog"]


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
    assert {row["label"] for row in rows} == {None}
    assert {row["split"] for row in rows} == {"train", "test"}


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
    with pytest.raises(UserError, match=r"dgo is no class of classes\.txt"):
        read_split(tmp_path, SplitSettings("folders"))


def test_a_class_folder_with_one_image(tmp_path):
    folders(tmp_path)
    images(tmp_path, "rare/1.jpg")
    rows, names, _ = index(tmp_path, tmp_path)
    assert names == ["cat", "dog", "rare"]
    assert [row["image_id"] for row in rows if row["classname"] == "rare"] == ["rare/1.jpg"]


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


def test_a_name_that_is_no_text_is_an_error(tmp_path):
    folders(tmp_path)
    images(tmp_path, "cat/\udcff.jpg")
    with pytest.raises(UserError, match="no path inside"):
        read_split(tmp_path, SplitSettings("folders"))


# Tables and lists.


def table(tmp_path, text, name="split.csv", **settings):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    images(tmp_path, "pictures/a.jpg", "pictures/b.jpg", "pictures/c.jpg")
    settings = SplitSettings("csv", file=name, images="pictures", **settings)
    return read_split(tmp_path, settings)[1]


def test_a_table_of_class_names(tmp_path):
    split = table(tmp_path, "path,label,split\na.jpg,dog,train\nb.jpg,cat,test\nc.jpg,,Train\n")
    assert split.names == ["cat", "dog"]
    assert split.items == [
        Item("a.jpg", "train", 1),
        Item("b.jpg", "test", 0),
        Item("c.jpg", "train", None),
    ]


def test_a_table_of_numbers_and_names(tmp_path):
    text = "path\tlabel\tclassname\tsplit\na.jpg\t1\tant\ttrain\nb.jpg\t0\tbee\ttest\n"
    assert table(tmp_path, text, name="split.tsv").names == ["bee", "ant"]


def test_a_table_of_numbers_with_a_file_of_names(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    split = table(tmp_path, "path,label,split\na.jpg,1,train\nb.jpg,0,test\nc.jpg,cat,test\n")
    assert [item.label for item in split.items] == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,cat\n", "must begin with the column names"),
        ("path,label\na.jpg,0\nb.jpg,1\n", "no class names: add a column classname"),
        ("path,label,split\na.jpg,cat,tset\n", "split 'tset' is none of train, val, test"),
        ("path,label\na.jpg,cat,test\n", "more fields than columns"),
        ("path,label,classname\na.jpg,0,cat\nb.jpg,0,dog\n", "label 0 is both"),
        ("path,label,classname\na.jpg,x,cat\n", "'x' is no number"),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "twice"),
        ("path,label\n", "lists no image"),
        ("path,label\n../a.jpg,cat\n", "no path inside"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)


def test_a_class_that_the_file_of_names_lacks(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    for label in ("2", "eel"):
        with pytest.raises(UserError, match=rf"line 2: class '{label}' is not in .*classes\.txt"):
            table(tmp_path, f"path,label,split\na.jpg,{label},train\n")


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
    with pytest.raises(UserError, match=r"split\.json is neither in"):
        read_split(tmp_path, settings)
    coop(tmp_path, [["a/1.jpg", 0, "a"]], [["b/2.jpg", 1, "b"]])
    with pytest.raises(UserError, match=r"such as a/1\.jpg, are neither in .*pictures"):
        read_split(tmp_path, settings)
    with pytest.raises(UserError, match="does not exist"):
        read_split(tmp_path / "no", settings)


def test_a_wrong_number_of_images_shows_both_numbers(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    coop(tmp_path, [["a.jpg", 0, "a"], ["b.jpg", 1, "b"]], [["c.jpg", 1, "b"]])
    read_split(tmp_path, SplitSettings("coop", counts={"train": 2, "test": 1, "classes": 2}))
    with pytest.raises(UserError, match="has 2 train where 3 are expected and 2 classes where 4"):
        read_split(tmp_path, SplitSettings("coop", counts={"train": 3, "test": 1, "classes": 4}))


# Decoding.


def test_every_image_is_listed_with_its_size_upright(tmp_path):
    folders(tmp_path / "d")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 10)).save(tmp_path / "d" / "cat" / "turned.jpg", exif=exif)
    rows, _, corrupt = index(tmp_path / "d", tmp_path, threads=2)
    by_id = {row["image_id"]: row for row in rows}
    assert len(by_id) == 21 and not corrupt
    assert (by_id["cat/0.jpg"]["width"], by_id["cat/0.jpg"]["height"]) == (12, 8)
    assert (by_id["cat/turned.jpg"]["width"], by_id["cat/turned.jpg"]["height"]) == (10, 20)
    assert by_id["dog/1.jpg"]["path"] == str(tmp_path / "d" / "dog" / "1.jpg")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_odd_kinds_of_images_are_decoded(tmp_path, mode):
    folders(tmp_path / "d")
    suffix = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 12), 40_000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (12, 8), (10, 200, 30)).convert(mode)
    image.save(tmp_path / "d" / "cat" / f"odd.{suffix}")
    rows, _, corrupt = index(tmp_path / "d", tmp_path)
    assert len(rows) == 21 and not corrupt
    decoded = open_rgb(tmp_path / "d" / "cat" / f"odd.{suffix}")
    assert decoded.mode == "RGB" and decoded.size == (12, 8)
    if mode == "I;16":
        assert decoded.getpixel((0, 0)) == (156, 156, 156)


def broken(tmp_path, n=150):
    """Two broken images among `n` good ones of each class: fewer than 1 %."""
    folders(tmp_path / "d", n=n)
    whole = Image.effect_noise((60, 60), 90)
    whole.save(tmp_path / "d" / "cat" / "half.jpg")
    content = (tmp_path / "d" / "cat" / "half.jpg").read_bytes()
    (tmp_path / "d" / "cat" / "half.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "d" / "dog" / "text.jpg").write_text("no image at all")
    return tmp_path / "d"


def test_a_few_broken_images_are_listed_and_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows, _, corrupt = index(broken(tmp_path), tmp_path)
    assert [row["image_id"] for row in corrupt] == ["cat/half.jpg", "dog/text.jpg"]
    assert all(row["split"] in ("train", "test") and row["reason"] for row in corrupt)
    assert len(rows) == 300
    assert not {row["image_id"] for row in corrupt} & {row["image_id"] for row in rows}
    assert "Cannot be decoded: cat/half.jpg" in caplog.text
    assert "Left out 2 of 302 images" in caplog.text


def test_too_many_broken_images_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"2 of the 22 images .* more than 1\.00%.*half\.jpg"):
        index(broken(tmp_path, n=10), tmp_path)
    assert not list((tmp_path / "out").iterdir())
    rows, _, _ = index(broken(tmp_path, n=10), tmp_path, max_corrupt=0.1)
    assert len(rows) == 20


def test_an_image_that_the_split_lists_and_nobody_has_counts_as_broken(tmp_path):
    root = tmp_path / "d"
    images(root, "a.jpg", "b.jpg")
    coop(root, [["a.jpg", 0, "a"], ["gone.jpg", 0, "a"]], [["b.jpg", 1, "b"]])
    rows, _, corrupt = index(root, tmp_path, kind="coop", max_corrupt=0.5)
    assert len(rows) == 2 and "No such file" in corrupt[0]["reason"]


def test_a_split_that_loses_all_its_images_is_an_error(tmp_path):
    images(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg")
    images(tmp_path, "test/cat/3.jpg", content=b"broken")
    with pytest.raises(UserError, match="no usable image in the test split"):
        index(tmp_path, tmp_path, max_corrupt=0.5)


def test_the_index_is_written_in_pieces_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(index_images, "CHUNK", 4)
    monkeypatch.setattr(index_images, "BATCH", 8)
    rows, _, _ = index(folders(tmp_path / "d", n=20), tmp_path, threads=2)
    ids = [row["image_id"] for row in rows]
    assert len(ids) == 40 and ids == sorted(ids)
    assert pq.ParquetFile(tmp_path / "out" / "images.parquet").num_row_groups == 5


def test_only_a_few_pieces_are_on_their_way_at_once(tmp_path, monkeypatch):
    """Memory does not grow with the number of images: tasks are handed out as results come in."""
    submitted, most = [], 0

    class Pool:
        def __init__(self, *_):
            pass

        def shutdown(self, **_):
            pass

        def submit(self, function, paths):
            nonlocal most
            future = workers.Future()
            future.set_result([size_of(path) for path in paths])
            submitted.append(future)
            most = max(most, len(submitted) - done[0])
            return future

    done = [0]
    monkeypatch.setattr(index_images, "CHUNK", 1)
    monkeypatch.setattr(index_images, "BATCH", 1)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    root = folders(tmp_path / "d", n=30)
    items = read_split(root, SplitSettings("folders"))[1].items
    for _ in index_images._batches(root, items, 2):
        done[0] += 1
    assert done[0] == 60 and most <= (index_images.AHEAD + 1) * 2
