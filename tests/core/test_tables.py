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


def test_lookup_follows_the_order_of_the_ids(tmp_path):
    path = write_captions(tmp_path / "c.parquet", ["a", "b", "c"], ["A", "B", "C"])
    assert tables.lookup(path, tables.CAPTIONS, "id", "caption", ["c", "a", "c"]) == ["C", "A", "C"]


def test_lookup_names_the_first_id_that_is_not_there(tmp_path):
    path = write_captions(tmp_path / "c.parquet", ["a", "b"], ["A", "B"])
    with pytest.raises(UserError, match="lacks 2 of 3 images, the first 'y'"):
        tables.lookup(path, tables.CAPTIONS, "id", "caption", ["a", "y", "z"])
