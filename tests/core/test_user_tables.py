import pytest

from latteclip.core.errors import UserError
from latteclip.core.user_tables import read_table


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
