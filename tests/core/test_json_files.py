import json

from latteclip.core.json_files import read_object, write_json


def test_an_object_may_hold_more_than_what_is_asked_for(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "b": 2}')
    assert read_object(path, ["b"]) == {"a": 1, "b": 2}


def test_json_is_readable_and_comes_back(tmp_path):
    value = {"é": [1, None, "x"]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "é" in text
    assert text.endswith("}\n")
