import pandas as pd
import pytest
from support.tiny import write_index

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.user_tables import (
    cells_by_image,
    class_of,
    is_empty,
    list_of,
    numbers_of_classes,
    read_table,
)


@pytest.mark.parametrize(
    ("training", "splits"), [(True, ["train", "val"]), (False, ["train", "test", "val"])]
)
def test_labels_are_not_among_what_training_stages_read(tmp_path, training, splits):
    files = ["d/a.png", "d/b.png", "d/c.png"]
    index = write_index(
        tmp_path / "i", files, ["train", "test", "val"], [1, None, 0], ["x", "y"]
    )
    table, classnames = tables.read_unlabelled(index, training=training)
    assert not {"label", "classname"} & set(table.column_names)
    assert classnames == ["x", "y"]
    assert table["split"].to_pylist() == splits


def test_a_text_of_csv_is_no_formula_and_other_texts_stay_as_they_are():
    for text in ("=1+2", "+a", "-a.jpg", "@a", "\ta", "\ra"):
        assert tables.csv_cell(text) == f"'{text}"
        assert tables.from_csv_cell(tables.csv_cell(text)) == text
    for text in ("'quoted'", "a=b", ""):
        assert tables.from_csv_cell(tables.csv_cell(text)) == text == tables.csv_cell(text)
    assert [tables.csv_cell(value) for value in (True, -0.5)] == ["true", "-0.500000"]


# --- tables of users ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("votes.csv", "image,class,class\na,x,y\n", "two columns"),
        ("votes.csv", "image,class\na,x\nb,x,y\n", "line 3"),
        ("votes.csv", b"image,class\na,\xff\n", "UTF-8"),
        ("votes.txt", "image,class\na,x\n", "does not end in"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"votes\.file .*{name}.*{message}"):
        read_table(str(path), "votes.file")


def test_a_parquet_file_has_numbers_of_classes_lists_of_them_and_empty_cells(tmp_path):
    path = str(tmp_path / "votes.parquet")
    rows = {"class": pd.array([1, None], "Int64"), "options": [[1, 0], None]}
    pd.DataFrame(rows).to_parquet(path)
    numbers = numbers_of_classes(["cat", "dog"], {})
    (number, options), empty = read_table(path, "votes.file").to_numpy()
    assert class_of(number, numbers) == 1
    assert [class_of(each, numbers) for each in list_of(options)] == [1, 0]
    assert all(map(is_empty, empty))


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ";"), ("a.csv", ","), ("a.tsv", "\t")]
)
def test_texts_stay_texts_and_lines_may_be_shorter(tmp_path, name, separator):
    lines = ["\ufeffimage,class", '"a,b",01', "nan"]
    lines = [line.replace(",", separator) for line in lines]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    found = read_table(str(tmp_path / name), "votes.file").to_dict("list")
    assert found == {"image": [f"a{separator}b", "nan"], "class": ["01", ""]}


IDS = ["cat/1.jpg", "cat/2.jpg", "dog/2.jpg", "cafe\u0301/3.jpg"]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("cat/1.jpg", "cat/1.jpg"),
        ("/home/me/photos/cat/2.jpg", "cat/2.jpg"),
        ("C:\\photos\\dog\\2.jpg", "dog/2.jpg"),
        ("1.jpg", "cat/1.jpg"),
        ("/photos/caf\u00e9/3.jpg", "cafe\u0301/3.jpg"),  # macOS
    ],
)
def test_a_path_or_the_name_of_a_file_names_an_image(name, image_id):
    table = pd.DataFrame({"image_id": [name, "nowhere.jpg"], "class": ["x", "y"]})
    assert cells_by_image("f", "key", table, ["class"], IDS) == {image_id: ["x"]}


@pytest.mark.parametrize(
    "names", [["cat/1.jpg", "1.jpg"], ["2.jpg"], ["bird/1.jpg"], ["nowhere.jpg"], [""]]
)
def test_names_that_mean_one_image_twice_or_none_are_refused(names):
    with pytest.raises(UserError, match=r"key.*cat/1\.jpg"):
        cells_by_image("f", "key", pd.DataFrame({"image_id": names}), [], IDS)
