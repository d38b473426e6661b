import pandas as pd
import pytest

from latteclip.core.errors import UserError
from latteclip.core.user_tables import cells_by_image, read_table


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("votes.csv", "image,class,class\na,x,y\n", "two columns"),
        ("votes.csv", "image,class\na,x\nb,x,y\n", "line 3"),
        ("votes.csv", b"image,class\na,\xff\n", "utf-8"),
        ("votes.txt", "image,class\na,x\n", "does not end in"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"votes\.file .*{name}.*{message}"):
        read_table(str(path), "votes.file")


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ";"), ("a.csv", ","), ("a.tsv", "\t")]
)
def test_texts_stay_texts_and_lines_may_be_shorter(tmp_path, name, separator):
    lines = ["\ufeffimage,class", '"a,b",01', "nan"]
    lines = [line.replace(",", separator) for line in lines]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    found = read_table(str(tmp_path / name), "votes.file").to_dict("list")
    assert found == {"image": [f"a{separator}b", "nan"], "class": ["01", ""]}


IDS = ["cat/1.jpg", "cat/2.jpg", "dog/2.jpg"]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("cat/1.jpg", "cat/1.jpg"),
        ("/home/me/photos/cat/2.jpg", "cat/2.jpg"),
        ("C:\\photos\\dog\\2.jpg", "dog/2.jpg"),
        ("1.jpg", "cat/1.jpg"),
    ],
)
def test_a_path_or_the_name_of_a_file_names_an_image(name, image_id):
    table = pd.DataFrame({"image_id": [name, "nowhere.jpg"], "class": ["x", "y"]})
    assert cells_by_image("f", "key", table, ["class"], IDS) == {image_id: ["x"]}


def test_two_rows_about_one_image_are_refused():
    table = pd.DataFrame({"image_id": ["cat/1.jpg", "1.jpg"]})
    with pytest.raises(UserError, match=r"key.*cat/1\.jpg"):
        cells_by_image("f", "key", table, [], IDS)


@pytest.mark.parametrize("name", ["2.jpg", "bird/1.jpg", "nowhere.jpg", ""])
def test_a_name_that_means_no_image_or_two_means_none(name):
    with pytest.raises(UserError, match=r"key.*cat/1\.jpg"):
        cells_by_image("f", "key", pd.DataFrame({"image_id": [name]}), [], IDS)
