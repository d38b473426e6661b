import pandas as pd
import pytest

from latteclip.captions.engines.file import read_captions
from latteclip.core.errors import UserError

ROWS = pd.DataFrame({"image_id": ["a/1.png", "007"], "caption": ['a "dot", red', "NA"]})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_all_forms_say_the_same(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    write = {
        ".parquet": lambda: ROWS.to_parquet(path),
        ".csv": lambda: ROWS.to_csv(path, index=False),
        ".tsv": lambda: ROWS.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: ROWS.to_json(path, orient="records", lines=True),
    }
    write[suffix]()
    assert read_captions(str(path), "images") == {"a/1.png": 'a "dot", red', "007": "NA"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt"),
        ("a.csv", "image_id,text\n1,x\n", "caption"),
        ("a.csv", "image_id,caption\n1,x\n1,y\n", "'1'"),
        ("a.parquet", "no parquet", r"a\.parquet"),
        ("a.jsonl", "[" * 9999, r"a\.jsonl"),
    ],
)
def test_other_forms_are_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_captions(str(tmp_path / name), "images")
    assert "captioner.images_file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        read_captions(str(tmp_path / "nowhere.csv"), "groups")
    with pytest.raises(UserError, match=r"captioner\.groups_file"):
        read_captions(None, "groups")
