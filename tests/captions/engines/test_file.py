import pandas as pd
import pytest

from latteclip.captions.engines.file import read_captions
from latteclip.core.errors import UserError
from latteclip.core.user_tables import by_image_id

KEY = "captioner.images_file"
CAPTIONS = pd.DataFrame({"image_id": ["a/1.png", "007"], "caption": ['a "dot", red', "NA"]})
WRITERS = {
    ".parquet": CAPTIONS.to_parquet,
    ".csv": lambda path: CAPTIONS.to_csv(path, index=False),
    ".jsonl": lambda path: CAPTIONS.to_json(path, orient="records", lines=True),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_captions_are_the_same_in_all_forms(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    WRITERS[suffix](path)
    captions = read_captions(str(path), KEY)
    texts = {image_id: answer.text for image_id, answer in captions.items()}
    assert texts == {"a/1.png": 'a "dot", red', "007": "NA"}


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
    assert by_image_id({name: "x", "nowhere.jpg": "y"}, IDS, "f", KEY) == {image_id: "x"}


@pytest.mark.parametrize("name", ["2.jpg", "bird/1.jpg", "nowhere.jpg", ""])
def test_a_name_that_means_no_image_or_two_means_none(name):
    with pytest.raises(UserError, match=KEY) as caught:
        by_image_id({name: "x"}, IDS, "f", KEY)
    assert "cat/1.jpg" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere/a.csv", None, r"a\.csv"),
        ("a.csv", "image_id,text\n1,x\n", "caption"),
        ("a.csv", "image_id,caption\n1,x\n1,y\n", "'1'"),
        ("a.parquet", "no parquet", r"a\.parquet"),
        ("a.jsonl", "[" * 9999, r"a\.jsonl"),
    ],
)
def test_other_forms_are_refused_in_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"{KEY}.*{message}"):
        read_captions(str(path), KEY)
