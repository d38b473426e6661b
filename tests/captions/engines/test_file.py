import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        ("a.txt", "", r"does not end in any of \.parquet, \.csv, \.tsv, \.jsonl"),
        ("a.csv", "image_id,text\n1,x\n", r"lacks the columns \['caption'\]"),
        ("a.csv", "image_id,caption\n1,x\n1,y\n", "two captions for '1'"),
        ("a.csv", "", "cannot be read"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.jsonl", "[" * 9999, "cannot be read"),
        ("a.csv", f"image_id,caption\n1,{'x' * 2**21}\n", "caption for '1' that cannot be"),
        ("a.csv", "\x00\x1b[2J", r"cannot be read|lacks"),
    ],
)
def test_other_forms_are_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_captions(str(tmp_path / name), "images")
    assert "captioner.images_file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        read_captions(str(tmp_path / "nowhere.csv"), "groups")
    with pytest.raises(UserError, match=r"needs captioner\.groups_file.*group_description"):
        read_captions(None, "groups")


def written(suffix, folder):
    """The bytes of a whole file of this form."""
    path = folder / f"whole{suffix}"
    if suffix == ".parquet":
        ROWS.to_parquet(path)
    elif suffix == ".jsonl":
        ROWS.to_json(path, orient="records", lines=True)
    else:
        ROWS.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path.read_bytes()


@settings(deadline=None)
@given(st.sampled_from([".parquet", ".csv", ".tsv", ".jsonl"]), st.data())
def test_a_damaged_file_gives_captions_or_one_sentence(tmp_path_factory, suffix, data):
    folder = tmp_path_factory.mktemp("own")
    content = bytearray(written(suffix, folder))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = folder / f"mine{suffix}"
    path.write_bytes(content)
    try:
        captions = read_captions(str(path), "images")
    except UserError as error:
        assert "\n" not in str(error)
        assert "captioner.images_file" in str(error)
        return
    for image_id, caption in captions.items():
        assert isinstance(image_id, str)
        assert caption.encode() is not None
