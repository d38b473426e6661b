import os
import shutil
import subprocess

import pytest

from latteclip.core import hashing
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest


def test_digest_tells_where_parts_end():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", b"c") == digest(b"ab", "c")
    assert len(digest()) == 64


@pytest.fixture
def folder(tmp_path):
    """A folder of two files, one of them deeper, with sums."""
    root = tmp_path / "model"
    (root / "text").mkdir(parents=True)
    (root / "a b.bin").write_bytes(bytes(range(256)))
    (root / "text" / "é.json").write_text("{}")
    (root / "README.md").write_text("may change")
    hashing.write_sums(root)
    return root


def test_what_was_written_is_intact_and_sha256sum_agrees(folder):
    assert hashing.verify_sums(folder, "x") == []
    command = ["sha256sum", "--check", "--strict", hashing.SUMS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a b.bin: OK", "text/é.json: OK"]


def test_every_flipped_byte_is_seen_and_the_file_is_named(folder):
    file = folder / "a b.bin"
    whole = file.read_bytes()
    for place in range(0, len(whole), 17):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"a b\.bin"):
            hashing.verify_sums(folder, "do that")


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_list_of_sums_that_never_ends_is_not_read(folder, kind):
    path = folder / hashing.SUMS
    if kind == "huge":
        with path.open("r+b") as file:
            file.truncate(2**33)
    else:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="SHA256SUMS"):
        hashing.verify_sums(folder, "x")


def test_a_sum_of_a_file_outside_is_of_a_missing_file(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    lines = f"{hashing.sha256(tmp_path / 'secret')}  ../secret\n"
    (folder / hashing.SUMS).write_text(lines)
    with pytest.raises(UserError, match=r"\.\./secret"):
        hashing.verify_sums(folder, "x")


def test_a_file_of_the_hub_s_cache_must_be_what_its_name_says(tmp_path):
    blob = tmp_path / hashing.sha256(__file__)
    shutil.copy(__file__, blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    hashing.verify_blob(link)
    with blob.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match=blob.name):
        hashing.verify_blob(link)
