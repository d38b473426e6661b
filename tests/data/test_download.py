"""Files of datasets are fetched, verified and unpacked."""

import hashlib
import json
import logging
import os
import shutil
import signal
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic_core import to_jsonable_python
from support.processes import status_of_fork
from support.shards import picture
from support.web import ARCHIVE, CONTENT, settings, sha256, wanted, zipped

from latteclip.cli import main
from latteclip.config.keys import DownloadSection
from latteclip.core.errors import UserError
from latteclip.core.files import digest
from latteclip.data import download_dataset as downloads
from latteclip.data.download_dataset import download_dataset, fetch


def unknown(*where):
    """A download without a checksum."""
    return DownloadSection(sources=list(where))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def break_off(host, folder, monkeypatch, spec=wanted):
    """Break off the transfer of a file at its half; its URL."""
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"file\.bin"):
        patch.setattr(downloads, "RETRIES", 0)
        host.cut["/file.bin"] = 1
        fetch("file.bin", spec(host.serve("/file.bin", CONTENT)), folder)
    assert not names(folder)
    return f"{host.url}/file.bin"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_later_run_continues_where_the_host_can(host, folder, monkeypatch, ranges):
    url = break_off(host, folder, monkeypatch)
    host.ranges = ranges
    assert fetch("file.bin", wanted(url), folder).read_bytes() == CONTENT
    assert [start for _, start in host.requests] == [0, len(CONTENT) // 2]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_file_that_changed_is_fetched_again(host, folder, monkeypatch, is_known):
    other = CONTENT[::-1]
    url = break_off(host, folder, monkeypatch, wanted if is_known else unknown)
    host.serve("/file.bin", other)
    spec = wanted(url, content=other) if is_known else unknown(url)
    if is_known:
        with pytest.raises(UserError, match=sha256(other)):
            fetch("file.bin", spec, folder)
    assert fetch("file.bin", spec, folder).read_bytes() == other


def test_a_full_disk_is_no_fault_of_the_source(host, folder):
    url = host.serve("/file.bin", CONTENT)
    part = folder / ".part" / digest(url)[:16]
    part.mkdir(parents=True)
    (part / "file.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        fetch("file.bin", wanted(url, "/no/such/file"), folder)


def test_a_host_that_is_busy_or_breaks_off_is_asked_again_with_growing_pauses(
    host, folder, waits
):
    host.busy["/file.bin"], host.cut["/file.bin"] = 3, 1
    url = host.serve("/file.bin", CONTENT)
    assert fetch("file.bin", wanted(url), folder).read_bytes() == CONTENT
    assert waits == sorted(waits) and len(waits) == 4 and waits[0] < waits[3]
    assert [start for _, start in host.requests] == [0, 0, 0, 0, len(CONTENT) // 2]


def test_when_all_fail_one_message_says_what_to_do_and_the_next_source_serves(
    host, folder, waits, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    wrong = host.serve("/wrong.bin", b"something else")
    urls = [f"{host.url}/a.bin", wrong, "/no/such/file"]
    with pytest.raises(UserError) as raised:
        fetch("file.bin", wanted(*urls), folder)
    message = str(raised.value)
    assert all(f"{url} failed: " in message for url in urls) and not names(folder)
    assert str(folder.resolve()) in message and sha256(CONTENT) in message
    assert sha256(b"something else") in message
    mine = tmp_path / "mine.bin"
    mine.write_bytes(CONTENT)
    for _ in range(2):  # what is there is not fetched again
        fetch("file.bin", unknown(*urls[::2], str(mine)), folder)
    assert names(folder) == ["file.bin"] and mine.is_file()
    assert caplog.text.count(f"{mine} served file.bin") == 1
    assert "No checksum" in caplog.text


@pytest.mark.parametrize(
    "checksum",
    [
        f"md5:{hashlib.md5(CONTENT).hexdigest()}",
        "git_blob:" + hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest(),
    ],
)
def test_checksums_of_other_kinds_count(host, folder, checksum):
    host.serve("/file.bin", CONTENT)
    spec = DownloadSection(sources=[f"{host.url}/file.bin"], checksum=checksum)
    assert fetch("file.bin", spec, folder).read_bytes() == CONTENT


# The stage.


def arguments(output, values):
    """`latteclip download-dataset` with settings."""
    words = ["download-dataset", "--dataset", "demo", "--settings", json.dumps(values)]
    return [*words, "--output", str(output)]


@pytest.fixture
def hub(host, tmp_path, capsys):
    """Runs the stage against a hub; its exit status, log and output."""
    output = tmp_path / "resources" / "demo" / "data"

    def run(source):
        values = {"source": {"downloads": {"images.tar.gz": {"sources": [source]}}}}
        with host.as_hub(tmp_path / "hf"):
            status = main.main(arguments(output, values))
        return status, capsys.readouterr().err, output

    return run


def test_name_and_checksum_are_looked_up_on_hugging_face(host, hub):
    content = zipped({"images/a.jpg": picture(0)})
    host.serve_repo("me/photos", {"OxfordFlowers.zip": content, "other.zip": b"x"})
    source = {"hf": "me/photos", "file": "*flower*.zip", "checksum": "hub"}
    status, log, output = hub(source)
    assert status == 0 and (output / "images" / "a.jpg").is_file(), log
    asked = len(host.requests)
    downloads, spec = output.parent / "downloads", DownloadSection(sources=[source])
    assert fetch("images.tar.gz", spec, downloads).read_bytes() == content
    assert len(host.requests) == asked
    shutil.rmtree(output.parent)
    host.files["/me/photos/resolve/main/OxfordFlowers.zip"] = b"broken"
    status, log, _ = hub(source)
    assert status == 2 and ", not sha256:" in log, log


def test_a_shard_is_not_unpacked_and_takes_its_room_once(host, tmp_path):
    url = host.serve("/images.tar.gz", ARCHIVE)
    output = tmp_path / "demo" / "data"
    for _ in range(2):
        shards = settings(url).model_copy(update={"kind": "webdataset"})
        download_dataset("demo", shards, str(output))
    (shard,) = (path for path in output.rglob("*") if path.is_file())
    assert shard.relative_to(output).as_posix() == "images.tar.gz"
    assert shard.samefile(tmp_path / "demo" / "downloads" / "images.tar.gz")


def test_a_folder_that_a_user_filled_is_not_replaced(tmp_path):
    output = tmp_path / "demo" / "data"
    # The second time, the lock lies beside it.
    for match in ("could not be fetched", str(output)):
        with pytest.raises(UserError, match=match):
            download_dataset("demo", settings("/no/such/file"), str(output))
        output.mkdir(exist_ok=True)
        (output / "mine.jpg").write_bytes(b"mine")
    assert (output / "mine.jpg").read_bytes() == b"mine"


def test_an_unpack_killed_half_way_is_redone(host, tmp_path, monkeypatch):
    extract = tarfile.TarFile.extract

    def dying(tar, entry, *args, **options):
        if entry.name.endswith("b.jpg"):
            os.kill(os.getpid(), signal.SIGKILL)
        return extract(tar, entry, *args, **options)

    output = tmp_path / "demo" / "data"
    url = host.serve("/images.tar.gz", ARCHIVE)
    words = arguments(output, to_jsonable_python(settings(url), exclude_none=True))
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", dying)
        assert status_of_fork(main.main, words) == -signal.SIGKILL
    assert not output.exists()
    [left] = (path for path in output.parent.iterdir() if path.name.endswith(".tmp"))
    assert (left / "images" / "a.jpg").is_file()
    assert main.main(words) == 0
    assert names(output / "images") == ["a.jpg", "b.jpg"]
    assert sorted(p.name for p in output.parent.iterdir()) == ["data", "downloads"]
    assert len(host.requests) == 1


def test_two_runs_at_once_fetch_once(host, tmp_path):
    output = tmp_path / "demo" / "data"
    given = settings(host.serve("/images.tar.gz", ARCHIVE))
    with ThreadPoolExecutor(2) as runs:  # file locks do not know threads
        list(runs.map(lambda _: download_dataset("demo", given, str(output)), range(2)))
    assert len(host.requests) == 1
    assert names(output / "images") == ["a.jpg", "b.jpg"]
