import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latteclip.audit.answer_files import is_foreign, read_foreign
from latteclip.core.answers import CLASS, NONE
from latteclip.core.errors import UserError

IDS = ["a/1.png", "a/2.png", "b/2.png"]
CLASSNAMES = ["dots", "lines"]
ENTRIES = [("a/1.png", "dots"), ("photos/b/2.png", "lines")]


def label_studio(entries):
    return json.dumps([
        {
            "data": {"image": f"/data/local-files/?d={image.replace(' ', '%20')}"},
            "annotations": [{"result": [{"value": {"choices": [label]}}]}],
        }
        for image, label in entries
    ])  # fmt: skip


def write(path, entries):
    rows = [{"image": image, "class": label} for image, label in entries]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("image, class\n" + "".join(f"{i}, {c}\n" for i, c in entries))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(label_studio(entries))
    return str(path)


@pytest.fixture(params=["labels.csv", "labels.parquet", "labels.jsonl", "labels.json"])
def path(request, tmp_path):
    return tmp_path / request.param


def read(path):
    assert is_foreign(path)
    found = read_foreign(path, IDS, CLASSNAMES, {})
    return [(one.image_id, one.classname) for one in found.values()]


def test_labels_of_other_tools_are_answers(path):
    wanted = [("a/1.png", "dots"), ("b/2.png", "lines")]
    assert read(write(path, [*ENTRIES, ENTRIES[0]])) == wanted


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_first_class_has_the_number_0(tmp_path, suffix):
    path = write(tmp_path / f"labels{suffix}", [("a/1.png", 0), ("a/2.png", 1)])
    assert read(Path(path)) == [("a/1.png", "dots"), ("a/2.png", "lines")]
    path = write(tmp_path / f"some{suffix}", [("a/1.png", 0), ("a/2.png", None)])
    assert read(Path(path)) == [("a/1.png", "dots")]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_percent_signs_belong_to_the_name_of_an_image(tmp_path, suffix):
    image = "a%20b.jpg"
    path = Path(write(tmp_path / f"labels{suffix}", [(image, "dots")]))
    if suffix == ".json":
        [task] = json.loads(path.read_text())
        path.write_text(json.dumps([task | {"data": {"image_id": image}}]))
    assert [*read_foreign(str(path), [image, "a b.jpg"], CLASSNAMES, {})] == [image]


def test_exported_labels_hold_answers_in_one_column(tmp_path):
    """Their labels are those of the workflow, which teach nothing new."""
    path = tmp_path / "labels.csv"
    rows = ["a/1.png,dots,none of these", "a/2.png,lines,", "b/2.png,dots,Big Lines"]
    path.write_text("\n".join(["image_id,label,answered", *rows]))
    found = read_foreign(str(path), IDS, CLASSNAMES, {"lines": "Big Lines"})
    kinds = [(one.image_id, one.kind, one.classname) for one in found.values()]
    assert kinds == [("a/1.png", NONE, None), ("b/2.png", CLASS, "lines")]


def test_images_that_are_not_there_are_named_and_left_out(path, caplog):
    with caplog.at_level(logging.WARNING):
        assert read(write(path, [("gone.png", "dots"), *ENTRIES[:1]])) == [
            ("a/1.png", "dots")
        ]
    assert "gone.png" in caplog.text
    with pytest.raises(UserError, match="labels"):
        read(write(path, [("2.png", "dots")]))  # of two images the name


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ([("a/1.png", "stripes")], "stripes"),
        ([("a/1.png", "dots"), ("a/1.png", "lines")], "a/1"),
    ],
)
def test_unknown_classes_and_contradictions_are_named(path, entries, named):
    with pytest.raises(UserError, match=named):
        read(write(path, entries))


WRONG = ["[1, 2]", "[[1]]", '[{"annotations": 3}]', label_studio([("a/1.png", 7)])]
WRONG += [
    f'[{{"annotations": [{{"result": [{one}]}}]}}]' for one in ('"word"', '{"value": []}')
]
LINES = ["[1]", "7", '{"image": 3}', '{"image": ["a"]}']
LINES += [f'{{"image": "a/1.png", "class": {one}}}' for one in ('["dots"]', "true", "0.5")]


@pytest.mark.parametrize(
    ("name", "text"),
    [("labels.json", text) for text in WRONG] + [("labels.jsonl", text) for text in LINES],
)
def test_values_of_other_types_are_one_sentence(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match="labels"):
        read(path)


def test_a_damaged_file_is_one_sentence(path):
    path.write_bytes(b"[\xff{" if path.suffix == ".json" else b"\xff\x00,{")
    with pytest.raises(UserError, match="labels"):
        read_foreign(str(path), IDS, CLASSNAMES, {})


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, separator, encoding):
    path = tmp_path / "labels.csv"
    rows = [("File", "Label"), *ENTRIES]
    path.write_text("\n".join(map(separator.join, rows)), encoding)
    assert read(path) == [("a/1.png", "dots"), ("b/2.png", "lines")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.xlsx", b"PK\x03\x04", "as CSV"),
        ("labels.csv", None, "not there"),
        ("labels.csv", "image,class\na/1.png,Böen".encode("cp1252"), "CSV UTF-8"),
        ("labels.csv", b"image,class\na/1.png," + b"1" * 400, "unknown class"),
        ("labels.csv", b"image,class\na/1.png,stars", "run the workflow first"),
        ("labels.csv", b"pictures,class\na/1.png,dots", "filename"),
    ],
)
def test_a_table_that_cannot_be_taken_is_told_from_others(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_whole_numbers_are_to_be_text_where_classes_are_numbers(tmp_path, suffix):
    path = write(tmp_path / f"labels{suffix}", [("a/1.png", 7)])
    with pytest.raises(UserError, match="as text"):
        read_foreign(path, IDS, ["7", "8"], {})
