import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.downloads import ARCHIVE, settings
from support.web import jpeg, sha256, tar, zipped

from latteclip.cli import main
from latteclip.core.errors import UserError
from latteclip.data import download_dataset


def test_a_dataset_is_unpacked_and_its_terms_are_printed(host, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    download_dataset.download_dataset("demo", settings(url, into="deep"), str(output))
    assert sorted(p.name for p in (output / "deep" / "images").iterdir()) == ["a.jpg", "b.jpg"]
    assert "licence: A licence" in caplog.text and "cite: A paper" in caplog.text


def test_nested_archives_are_unpacked_where_they_lie(host, tmp_path):
    packed = zipped({"top/inner.tar.gz": ARCHIVE, "top/other.tar.gz": b"left alone"})
    url = host.serve("/images.zip", packed)
    wanted = {"sources": [url], "checksum": sha256(packed), "nested": ["inner.tar.gz"]}
    output = tmp_path / "demo" / "data"
    values = download_dataset.DownloadSettings({"images.zip": wanted})
    download_dataset.download_dataset("demo", values, str(output))
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert found == {"top/images/a.jpg", "top/images/b.jpg", "top/other.tar.gz"}


def test_a_shard_is_not_unpacked_and_takes_its_room_once(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    for _ in range(2):
        download_dataset.download_dataset(
            "demo", settings(url, into="train", unpack=False), str(output)
        )
    (shard,) = (path for path in output.rglob("*") if path.is_file())
    assert shard.relative_to(output).as_posix() == "train/images.tar.gz"
    assert shard.samefile(tmp_path / "demo" / "downloads" / "images.tar.gz")


def test_unpacking_again_fetches_nothing(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    download_dataset.download_dataset("demo", settings(url), str(output))
    (output / "images" / "a.jpg").write_bytes(b"")
    download_dataset.download_dataset("demo", settings(url), str(output))
    assert (output / "images" / "a.jpg").read_bytes() == jpeg()
    assert len(host.requests) == 1


def test_a_folder_that_a_user_filled_is_not_replaced(tmp_path):
    output = tmp_path / "demo" / "data"
    for match in ("could not be fetched", str(output)):  # the second time, the lock lies there
        with pytest.raises(UserError, match=match):
            download_dataset.download_dataset("demo", settings("/no/such/file"), str(output))
        output.mkdir(exist_ok=True)
        (output / "mine.jpg").write_bytes(b"mine")
    assert (output / "mine.jpg").read_bytes() == b"mine"


def test_an_unsafe_archive_leaves_no_data(host, tmp_path):
    evil = tar({"images/a.jpg": jpeg(), "../evil": b""})
    url = host.serve("/images.tar.gz", evil)
    with pytest.raises(UserError, match="leads out"):
        download_dataset.download_dataset(
            "demo", settings(url, content=evil), str(tmp_path / "demo" / "data")
        )
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["downloads"]


KILLED = """
import os, signal, sys
import tarfile
from latteclip.cli import main
extract = tarfile.TarFile.extractfile
def dying(tar, entry):
    if entry.name.endswith("b.jpg"):
        os.kill(os.getpid(), signal.SIGKILL)
    return extract(tar, entry)
tarfile.TarFile.extractfile = dying
sys.exit(main.main(sys.argv[1:]))
"""


def test_an_unpack_killed_half_way_is_redone(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    values = {"downloads": settings(url).downloads}
    arguments = ["download-dataset", "--dataset", "demo"]
    arguments += ["--settings", json.dumps(values), "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in output.parent.iterdir() if path.name.endswith(".tmp")]
    assert len(left) == 1 and (left[0] / "images" / "a.jpg").is_file()
    assert not output.exists()
    assert main.main(arguments) == 0
    assert sorted(p.name for p in (output / "images").iterdir()) == ["a.jpg", "b.jpg"]
    assert sorted(p.name for p in output.parent.iterdir()) == ["data", "downloads"]
    assert len(host.requests) == 1


# --- one run at a time ---------------------------------------------------------------------------


def test_two_runs_at_once_fetch_once(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    values = {"downloads": settings(url).downloads}
    output = tmp_path / "demo" / "data"
    arguments = ["download-dataset", "--dataset", "demo", "--settings", json.dumps(values)]
    program = [Path(sys.executable).with_name("latteclip"), *arguments, "--output", output]
    runs = [subprocess.Popen(program) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(host.requests) == 1
    assert sorted(p.name for p in (output / "images").iterdir()) == ["a.jpg", "b.jpg"]


# Locks a downloads folder until it is killed.
LOCK = """
import sys, time
from pathlib import Path
from latteclip.data import download_dataset
with download_dataset._locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_does_not_block_the_next_one(folder):
    run = subprocess.Popen([sys.executable, "-c", LOCK, folder], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "locked\n"
    run.kill()
    run.communicate()
    with download_dataset._locked(folder):
        pass
