import os
import socket
import subprocess
import time

import pytest

from latteclip.core import files
from latteclip.core.errors import UserError
from latteclip.core.files import replacing, write_text


def fail():
    raise RuntimeError("stop")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_and_no_rest(tmp_path, kind):
    target = tmp_path / "x"
    if kind == "folder":
        target.mkdir()
        (target / "old").touch()
    else:
        target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target, overwrite=True) as temporary:
        temporary.mkdir() if kind == "folder" else temporary.write_text("half")
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (target / "old").exists() if kind == "folder" else target.read_text() == "old"


@pytest.mark.parametrize("old", ["file", "link", "folder", "filled meanwhile"])
def test_a_folder_replaces_nothing_of_the_user(tmp_path, old):
    target, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if old == "file":
        target.write_text("precious")
    elif old == "link":
        target.symlink_to(elsewhere)
    elif old == "folder":
        target.mkdir()
        (target / "precious").touch()
    with pytest.raises((UserError, OSError), match="mine"), replacing(target) as temporary:
        temporary.mkdir()
        if old == "filled meanwhile":
            target.mkdir()
            (target / "precious").touch()
    assert (target.is_file(), target.is_symlink()) == (old == "file", old == "link")
    assert (target / "precious").exists() == (old in ("folder", "filled meanwhile"))
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "elsewhere"}


def write_left_over(target, host, process, age=0.0):
    path = target.with_name(f".{target.name}.{host}.{process}.tmp")
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_killed_processes_left_is_removed_by_the_next(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    target, host = tmp_path / "x.txt", socket.gethostname()
    kept = {
        write_left_over(target, host, os.getppid()),
        write_left_over(target, "elsewhere", gone.pid),
        write_left_over(tmp_path / "other.txt", host, gone.pid),
    }
    write_left_over(target, host, gone.pid)
    write_left_over(target, "elsewhere", os.getpid(), age=100_000)
    write_text(target, "new")
    assert set(tmp_path.iterdir()) == {target, *kept}


@pytest.mark.parametrize("blocks", [10**6, 100])
def test_a_model_goes_by_its_content_wherever_it_is(tmp_path, monkeypatch, blocks):
    """Large files count by samples of it."""
    monkeypatch.setattr(files, "BLOCKS", blocks)
    monkeypatch.setattr(files, "BLOCK", 10)
    contents = (bytes(5000), bytes(5000), bytes(5001), bytes(4950) + b"x" + bytes(49))
    of_folders, of_files = [], []
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        (folder / "text_tower").mkdir(parents=True)
        (folder / "text_tower" / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content)
        (folder / ".lock").write_text(str(number))
        of_folders.append(files.fingerprint(folder))
        of_files.append(files.fingerprint(folder / "model.safetensors"))
    for found in (of_folders, of_files):
        assert found[0] == found[1]
        assert len(set(found)) == 3
    tower = (tmp_path / "0" / "text_tower").rename(tmp_path / "tower")
    (tmp_path / "0" / "text_tower").symlink_to(tower)
    assert files.fingerprint(tmp_path / "0") == of_folders[1]
    (tower / "config.json").write_text("[]")
    assert files.fingerprint(tmp_path / "0") != of_folders[1]
