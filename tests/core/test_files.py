import json

import pytest

from latteclip.core.files import replacing, write_json, write_text


def fail():
    raise RuntimeError("stop")


def test_a_file_is_written_with_its_folders(tmp_path):
    write_text(tmp_path / "a" / "b" / "x.txt", "é\n")
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == "é\n".encode()


def test_nothing_shows_under_the_name_before_the_end(tmp_path):
    target = tmp_path / "x.txt"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "new"


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.txt", "old")]


def test_a_failure_leaves_the_old_folder_and_no_rest(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in target.iterdir()] == ["old"]


def test_a_body_that_writes_nothing_is_an_error_that_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(target):
        pass
    assert target.read_text() == "old"


@pytest.mark.parametrize("old", ["file", "folder", "link to a folder"])
def test_a_folder_replaces_what_was_there(tmp_path, old):
    target, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if old == "file":
        target.write_text("old")
    elif old == "folder":
        target.mkdir()
        (target / "old").touch()
    else:
        target.symlink_to(elsewhere)
    with replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert (elsewhere / "kept").exists()


def test_json_is_readable_and_comes_back(tmp_path):
    value = {"é": [1, None, "x"]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "é" in text
    assert text.endswith("}\n")
