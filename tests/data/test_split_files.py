import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.image_folders import COOP_SPLITS, images

from latteclip.core.errors import UserError
from latteclip.data import splits
from latteclip.data.splits import Item, SplitSettings, read_split

KEYS = {  # split file -> key of classnames.json, train+val and test images
    "Caltech101": ("caltech101", 5777, 2465),
    "DescribableTextures": ("dtd", 3948, 1692),
    "EuroSAT": ("eurosat", 18900, 8100),
    "OxfordFlowers": ("flower102", 5726, 2463),
    "OxfordPets": ("oxford_pets", 3680, 3669),
    "StanfordCars": ("stanford_cars", 8144, 8041),
    "UCF101": ("ucf101", 9537, 3783),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_splits_of_coop(name):
    if not COOP_SPLITS.is_dir():
        pytest.skip("no splits of CoOp beside the repository (../shared/data/coop_splits)")
    key, train, test = KEYS[name]
    split = splits.read_coop(COOP_SPLITS / f"split_zhou_{name}.json")
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
    split = read_text(splits.read_coop, json.dumps(content))
    if split is not None:
        assert is_valid(split) and set(content) <= {"train", "val", "test"}


@given(st.binary(max_size=40))
def test_any_file_is_a_split_or_one_error(content):
    assert read_text(splits.read_coop, content) is None


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
    split = read_text(splits.read_csv, text, None, 0.3)
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
            lambda path: splits.read_lists({"train": path}, classes, ".jpg"), "\n".join(lines)
        )
    assert split is None or not split.items or is_valid(split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "split.json"),
        ('{"train": []}', "test"),
        ('{"train": [], "test": []}', "no image"),
        ('{"train": [["a", 0, "x"], ["b", 0, "y"]], "test": []}', "label 0"),
        ('{"train": [["a", 0, "x"]], "test": [["a", 0, "x"]]}', "'a'"),
        ('{"train": [["../a", 0, "x"]], "test": []}', "../a"),
    ],
)
def test_what_is_wrong_with_a_coop_split_is_said(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(UserError, match=message):
        splits.read_coop(tmp_path / "split.json")


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


def test_a_table_of_numbers_with_a_file_of_names(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    split = table(tmp_path, "path,label,split\na.jpg,1,train\nb.jpg,0,test\nc.jpg,cat,test\n")
    assert [item.label for item in split.items] == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,cat\n", "column"),
        ("path,label,split\na.jpg,cat,tset\n", "tset"),
        ("path,label\na.jpg,cat,test\n", "line 2"),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "a.jpg"),
        ("path,label\n../a.jpg,cat\n", "../a.jpg"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)
