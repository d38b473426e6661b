import os
import shutil
import subprocess

import pytest

from latteclip.core import checksums
from latteclip.core.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A folder of two files, one of them deeper, with sums."""
    root = tmp_path / "model"
    (root / "text").mkdir(parents=True)
    (root / "a b.bin").write_bytes(bytes(range(256)))
    (root / "text" / "é.json").write_text("{}")
    (root / "README.md").write_text("may change")
    checksums.write(root)
    return root


def test_what_was_written_is_intact_and_sha256sum_agrees(folder):
    assert checksums.verify(folder, "x") == []
    command = ["sha256sum", "--check", "--strict", checksums.SUMS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a b.bin: OK", "text/é.json: OK"]


def test_every_flipped_byte_is_seen_and_the_file_is_named(folder):
    file = folder / "a b.bin"
    whole = file.read_bytes()
    for place in range(0, len(whole), 17):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"a b\.bin is missing or not the file .*; do that\."):
            checksums.verify(folder, "do that")


def test_a_missing_file_is_named(folder):
    shutil.rmtree(folder / "text")
    with pytest.raises(UserError, match=r"text/é\.json is missing"):
        checksums.verify(folder, "x")


def test_a_named_pipe_in_place_of_a_file_is_not_opened(folder):
    (folder / "a b.bin").unlink()
    os.mkfifo(folder / "a b.bin")
    with pytest.raises(UserError, match=r"a b\.bin is missing"):
        checksums.verify(folder, "x")


def test_files_that_are_not_named_are_told_and_prose_and_hidden_files_are_free(folder):
    (folder / "README.md").write_text("changed")
    (folder / ".gitattributes").touch()
    (folder / "extra.txt").touch()
    assert checksums.verify(folder, "x") == ["extra.txt"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"hello\n", b"0" * 63 + b"  a\n"])
def test_what_is_no_list_of_sums_is_refused(folder, content):
    (folder / checksums.SUMS).write_bytes(content)
    with pytest.raises(UserError, match="SHA256SUMS is not a list of SHA-256 sums"):
        checksums.verify(folder, "x")


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_list_of_sums_that_never_ends_is_not_read(folder, kind):
    path = folder / checksums.SUMS
    if kind == "huge":
        with path.open("r+b") as file:
            file.truncate(2**33)
    else:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="SHA256SUMS is not a list of SHA-256 sums"):
        checksums.verify(folder, "x")


def test_a_sum_of_a_file_outside_is_of_a_missing_file(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    lines = f"{checksums.sha256(tmp_path / 'secret')}  ../secret\n"
    (folder / checksums.SUMS).write_text(lines)
    with pytest.raises(UserError, match=r"\.\./secret is missing"):
        checksums.verify(folder, "x")


def test_a_folder_without_sums_is_taken_as_it_is(tmp_path):
    (tmp_path / "x").touch()
    assert checksums.verify(tmp_path, "x") == []


def test_a_file_of_the_hub_s_cache_must_be_what_its_name_says(tmp_path):
    blob = tmp_path / checksums.sha256(__file__)
    shutil.copy(__file__, blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    checksums.verify_name(link)
    with blob.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match=f"{blob.name} is damaged"):
        checksums.verify_name(link)


def test_a_name_that_is_no_sum_says_nothing(tmp_path):
    (tmp_path / "a").write_text("x")
    checksums.verify_name(tmp_path / "a")
