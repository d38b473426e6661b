import os

import pytest

from latteclip.core import json_files
from latteclip.core.errors import UserError
from latteclip.core.json_files import read_object


def test_an_object_may_hold_more_than_what_is_asked_for(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "b": 2}')
    assert read_object(path, ["b"]) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b'{"a": 1', ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (b"[]", ""),
        (b"{}", " lacks a"),
    ],
)
def test_what_is_no_such_object_is_one_sentence(tmp_path, content, wrong):
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"metrics\.json.*{wrong}") as error:
        read_object(path, ["a"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_folder_or_a_pipe_is_refused(tmp_path, kind):
    path = tmp_path / "x.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"x\.json"):
        read_object(path, [], "get another")


def test_a_file_without_bound_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, json_files.LARGEST + 1)
    with pytest.raises(UserError, match=r"x\.json"):
        read_object(path, [])
