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


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet.*size"):
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
    with pytest.raises(UserError, match="'y'"):
        tables.lookup(path, tables.CAPTIONS, "id", "caption", ["a", "y", "z"])


def test_strings_of_a_column_are_a_sequence_over_its_chunks(monkeypatch):
    monkeypatch.setattr(tables, "STRINGS", 2)
    names = ["a", "é", "c", "d", "e"]
    strings = tables.Strings(pa.chunked_array([names[:3], names[3:]]))
    assert len(strings) == 5
    assert [strings[i] for i in range(-1, 5)] == [names[-1], *names]
    assert list(strings) == list(strings[0:9]) == names
    assert list(strings[2:4]) == names[2:4]


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
