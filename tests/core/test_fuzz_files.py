"""Damaged tables and JSON files: what is read is what was written, or one sentence is told."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.damage import damaged, twisted

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.json_files import read_object
from latteclip.evaluate.results import METRICS, read_metrics

SCHEMA = pa.schema([("id", pa.string()), ("label", pa.int32()), ("scores", pa.list_(pa.float32()))])
METADATA = {"classnames": ["a", "é"], "n": 3}


def told(error, path):
    """The sentence of a UserError about a file."""
    assert "\n" not in str(error)
    assert str(path) in str(error)
    return str(error)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    columns = {
        "id": [f"{n}.png" for n in range(50)],
        "label": [None, *range(49)],
        "scores": [[n / 7, 0.5] for n in range(50)],
    }
    tables.write(path, columns, SCHEMA, METADATA)
    return path, path.read_bytes(), tables.read(path, SCHEMA)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_table(table, data):
    path, whole, wanted = table
    path.write_bytes(data.draw(damaged(whole)))
    try:
        found = tables.read(path, SCHEMA)
    except UserError as error:
        told(error, path)
    else:
        assert found[0].equals(wanted[0])
        assert found[1] == wanted[1]


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    path = tmp_path_factory.mktemp("metrics") / "metrics.json"
    values = dict.fromkeys(METRICS, 0.5) | {"dataset": "d", "method": "m", "per_class": [0.1]}
    return path, json.dumps(values)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_json_file(metrics, data):
    path, text = metrics
    path.write_bytes(data.draw(damaged(text.encode())))
    try:
        assert isinstance(read_object(path, METRICS), dict)
    except UserError as error:
        told(error, path)


@settings(deadline=None)
@given(st.data())
def test_metrics_of_other_values(metrics, data):
    path, text = metrics
    path.write_text(data.draw(twisted(text)), encoding="utf-8")
    try:
        found = read_metrics(path)
    except UserError as error:
        told(error, path)
    else:
        assert set(METRICS) <= set(found)
