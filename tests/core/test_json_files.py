from latteclip.core.json_files import read_object


def test_an_object_may_hold_more_than_what_is_asked_for(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "b": 2}')
    assert read_object(path, ["b"]) == {"a": 1, "b": 2}
