import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny import write_captions, write_index

from latteclip.core import tables
from latteclip.core.errors import UserError

SCHEMA = pa.schema([("id", pa.string()), ("size", pa.int32())])


@pytest.fixture
def index(tmp_path):
    return write_index(
        tmp_path / "images.parquet",
        ["d/a.png", "d/b.png", "d/c.png"],
        ["train", "test", "val"],
        [1, None, 0],
        ["x", "y"],
    )


def test_a_table_comes_back_with_its_metadata(tmp_path):
    metadata = {"names": ["é", "b"], "n": 3, "nothing": None}
    tables.write(tmp_path / "t.parquet", {"id": ["a", "b"], "size": [1, None]}, SCHEMA, metadata)
    table, found = tables.read(tmp_path / "t.parquet", SCHEMA)
    assert table.to_pydict() == {"id": ["a", "b"], "size": [1, None]}
    assert table.schema.types == SCHEMA.types
    assert found == metadata


def test_the_same_table_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tables.write(tmp_path / name, {"id": ["a"], "size": [1]}, SCHEMA, {"k": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_column_of_the_wrong_type_is_not_written(tmp_path):
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        tables.write(tmp_path / "t.parquet", {"id": ["a"], "size": ["big"]}, SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"t\.parquet does not exist"):
        tables.read(tmp_path / "t.parquet", SCHEMA)


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "t.parquet").write_text("hello")
    with pytest.raises(UserError, match=r"t\.parquet is not a valid Parquet file"):
        tables.read(tmp_path / "t.parquet", SCHEMA)


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet lacks the columns \['size'\]"):
        tables.read(tmp_path / "t.parquet", SCHEMA)


@pytest.mark.parametrize("training", [True, False])
def test_labels_are_not_among_what_training_stages_read(index, training):
    table, classnames = tables.read_unlabelled(index, training=training)
    assert not {"label", "classname"} & set(table.column_names)
    assert classnames == ["x", "y"]


def test_training_images_are_those_outside_the_test_split(index):
    assert tables.read_unlabelled(index, training=True)[0]["split"].to_pylist() == ["train", "val"]
    assert len(tables.read_unlabelled(index, training=False)[0]) == 3


@pytest.mark.parametrize("ids", ["cac", "abcde", "bd", "eb", "aab", ""])
def test_lookup_follows_the_order_of_the_ids(tmp_path, monkeypatch, ids):
    monkeypatch.setattr(tables, "STRINGS", 2)
    path = write_captions(tmp_path / "c.parquet", list("abcde"), list("ABCDE"))
    assert tables.lookup(path, tables.CAPTIONS, "id", "caption", list(ids)) == list(ids.upper())


def test_lookup_names_the_first_id_that_is_not_there(tmp_path):
    path = write_captions(tmp_path / "c.parquet", ["a", "b"], ["A", "B"])
    with pytest.raises(UserError, match="lacks 2 of 3 images, the first 'y'"):
        tables.lookup(path, tables.CAPTIONS, "id", "caption", ["a", "y", "z"])


def test_strings_of_a_column_are_a_sequence_over_its_chunks(monkeypatch):
    monkeypatch.setattr(tables, "STRINGS", 2)
    names = ["a", "é", "c", "d", "e"]
    strings = tables.Strings(pa.chunked_array([names[:3], names[3:]]))
    assert len(strings) == 5
    assert [strings[i] for i in range(-1, 5)] == [names[-1], *names]
    assert list(strings) == list(strings[0:9]) == names
    assert list(strings[2:4]) == names[2:4]


def test_rows_come_in_order_some_at_a_time(monkeypatch):
    monkeypatch.setattr(tables, "STRINGS", 2)
    columns = {"id": list("abcde"), "size": [1, None, 3, 4, 5]}
    table = pa.concat_tables([pa.table(columns, schema=SCHEMA)] * 2)
    assert list(tables.rows_of(table)) == table.to_pylist()


@pytest.mark.parametrize("n", [0, 3])
def test_a_column_of_lists_gives_back_the_rows(n):
    rows = np.arange(n * 4, dtype=np.int32).reshape(n, 4)[:, 1:]  # in memory not one after another
    column = tables.list_column(rows)
    assert column.to_pylist() == rows.tolist()
    assert column.type == tables.PREDICTIONS.field("topk_labels").type
    if n:
        assert np.array_equal(tables.from_list_column(pa.chunked_array([column])), rows)


# --- damage --------------------------------------------------------------------------------------

COLUMNS = {"id": [f"image {n}" for n in range(40)], "size": [None, 1, 2, 3] * 10}


@pytest.fixture
def table(tmp_path):
    """A table of two row groups with metadata."""
    path = tmp_path / "t.parquet"
    with tables.writing(path, SCHEMA, {"classnames": ["cat", "dog"]}) as add:
        add(COLUMNS)
        add(COLUMNS)
    return path


def outcome(path):
    """What is read, or the sentence."""
    try:
        found, metadata = tables.read(path, SCHEMA)
        return found.to_pydict(), metadata
    except UserError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return str(error)


def test_no_part_of_a_table_passes_for_the_whole(table):
    whole = table.read_bytes()
    for length in range(0, len(whole), 7):
        table.write_bytes(whole[:length])
        assert isinstance(outcome(table), str)


def test_a_damaged_page_is_seen_piece_by_piece_too(table):
    whole = bytearray(table.read_bytes())
    with pq.ParquetFile(table) as file:
        column = file.metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    whole[start + column.total_compressed_size - 3] ^= 1
    table.write_bytes(whole)
    pieces = tables.read_pieces(table, SCHEMA, ["id"], 10)
    with pytest.raises(UserError, match=r"t\.parquet is not a valid Parquet file .*CRC"):
        list(pieces)


def test_other_programs_read_what_bears_checksums(table):
    assert pq.read_table(table).to_pydict() == {k: v * 2 for k, v in COLUMNS.items()}


def test_a_table_of_another_program_bears_none_and_is_read(table):
    pq.write_table(pa.table(COLUMNS, schema=SCHEMA), table)
    assert tables.read(table, SCHEMA)[0].to_pydict() == COLUMNS


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_folder_or_a_pipe_in_place_of_a_table_is_refused(tmp_path, kind):
    path = tmp_path / "images.parquet"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"images\.parquet is not a regular file"):
        tables.read_unlabelled(path, training=True)


def test_an_index_that_does_not_name_its_classes_is_refused(index):
    table, _ = tables.read(index, tables.IMAGES)
    tables.write(index, dict(zip(table.column_names, table.columns, strict=True)), tables.IMAGES)
    with pytest.raises(UserError, match="does not say which classes there are"):
        tables.read_unlabelled(index, training=True)
