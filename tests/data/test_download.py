import gzip
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.downloads import CONTENT, wanted
from support.web import jpeg, sha256, zipped

from latteclip.core.errors import UserError
from latteclip.data import datasets
from latteclip.data import download_dataset as download


def unknown(*where):
    """A download without a checksum."""
    return datasets.Download(list(where))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_fetches_verifies_and_notes_where_it_is_from(host, folder, caplog):
    caplog.set_level(logging.INFO)
    url = host.serve("/file.bin", CONTENT)
    path = download.fetch("file.bin", wanted(url), folder)
    assert path == folder / "file.bin" and path.read_bytes() == CONTENT
    assert f"{url} served file.bin" in caplog.text
    assert names(folder) == ["file.bin"] and not list((folder / ".part").iterdir())


def test_a_connection_cut_at_half_is_continued(host, folder, waits):
    host.cut["/file.bin"] = 1
    url = host.serve("/file.bin", CONTENT)
    assert download.fetch("file.bin", wanted(url), folder).read_bytes() == CONTENT
    assert host.requests == [("/file.bin", 0), ("/file.bin", len(CONTENT) // 2)]


@pytest.fixture
def broken_off(host, folder, monkeypatch):
    """Breaks off the transfer of a file at its half; returns its URL."""

    def begin(spec=wanted):
        monkeypatch.setattr(download, "RETRIES", 0)
        host.cut["/file.bin"] = 1
        url = host.serve("/file.bin", CONTENT)
        with pytest.raises(UserError, match=r"file\.bin"):
            download.fetch("file.bin", spec(url), folder)
        assert not names(folder)
        return url

    return begin


def test_a_later_run_continues(host, folder, broken_off):
    assert download.fetch("file.bin", wanted(broken_off()), folder).read_bytes() == CONTENT
    assert [start for _, start in host.requests] == [0, len(CONTENT) // 2]


def test_a_host_that_cannot_continue_sends_the_whole(host, folder, broken_off):
    url = broken_off()
    host.ranges = False
    assert download.fetch("file.bin", wanted(url), folder).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_again(host, folder, broken_off):
    url = broken_off()
    host.serve("/file.bin", CONTENT[::-1])
    spec = wanted(url, content=CONTENT[::-1])
    assert download.fetch("file.bin", spec, folder).read_bytes() == CONTENT[::-1]


def test_without_a_checksum_nothing_is_continued(host, folder, broken_off):
    url = broken_off(unknown)
    host.serve("/file.bin", CONTENT[::-1])
    assert download.fetch("file.bin", unknown(url), folder).read_bytes() == CONTENT[::-1]


def test_a_stalled_transfer_is_continued(host, folder, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.02))
    monkeypatch.setattr("time.sleep", lambda seconds: host.drops.clear())
    host.drops["/file.bin"] = "body"
    url = host.serve("/file.bin", CONTENT)
    assert download.fetch("file.bin", wanted(url), folder).read_bytes() == CONTENT


def test_a_full_disk_is_no_fault_of_the_source(host, folder, monkeypatch):
    monkeypatch.setattr(download, "FILE", "/dev/full")
    url = host.serve("/file.bin", CONTENT)
    with pytest.raises(OSError, match="No space left"):
        download.fetch("file.bin", wanted(url, "/no/such/file"), folder)


def test_an_archive_that_comes_encoded_is_left_as_it_is(host, folder):
    packed = gzip.compress(CONTENT)
    host.headers["/file.gz"] = {"Content-Encoding": "gzip"}
    url = host.serve("/file.gz", packed)
    assert download.fetch("file.gz", wanted(url, content=packed), folder).read_bytes() == packed


def test_a_part_of_one_source_is_not_continued_from_another(host, folder, waits):
    host.cut["/one/file.bin"] = 100
    one = host.serve("/one/file.bin", CONTENT[::-1])
    two = host.serve("/two/file.bin", CONTENT)
    assert download.fetch("file.bin", wanted(one, two), folder).read_bytes() == CONTENT
    assert [start for path, start in host.requests if path == "/two/file.bin"] == [0]


def test_a_busy_host_is_asked_again_with_growing_pauses(host, folder, waits):
    host.busy["/file.bin"] = 3
    url = host.serve("/file.bin", CONTENT)
    assert download.fetch("file.bin", wanted(url), folder).read_bytes() == CONTENT
    assert waits == sorted(waits) and len(waits) == 3 and waits[0] < waits[2]


def test_after_404_the_mirror_serves_and_the_log_says_so(host, folder, caplog):
    caplog.set_level(logging.INFO)
    gone, mirror = f"{host.url}/gone.bin", host.serve("/mirror.bin", CONTENT)
    download.fetch("file.bin", wanted(gone, mirror), folder)
    assert names(folder) == ["file.bin"]
    assert re.search(f"{gone} failed: .*404", caplog.text)
    assert f"{mirror} served file.bin" in caplog.text


def test_a_wrong_checksum_sets_the_file_aside(host, folder):
    url = host.serve("/file.bin", b"something else")
    with pytest.raises(UserError, match=rf"{sha256(b'something else')} and not {sha256(CONTENT)}"):
        download.fetch("file.bin", wanted(url), folder)
    assert names(folder) == ["file.bin.rejected"]
    good = host.serve("/good.bin", CONTENT)
    assert download.fetch("file.bin", wanted(url, good), folder).read_bytes() == CONTENT


def test_when_all_fail_one_message_says_what_to_do(host, folder, waits):
    urls = [f"{host.url}/a.bin", f"{host.url}/b.bin", "/no/such/file"]
    with pytest.raises(UserError) as raised:
        download.fetch("file.bin", wanted(*urls), folder)
    message = str(raised.value)
    assert all(f"{url}: " in message for url in urls)
    assert str(folder.resolve()) in message and sha256(CONTENT) in message


def test_a_file_placed_by_hand_is_taken(folder):
    (folder / "file.bin").write_bytes(CONTENT)
    assert download.fetch("file.bin", wanted("/no/such/file"), folder) == folder / "file.bin"


def test_without_a_known_checksum_it_is_taken_with_a_warning_and_remembered(host, folder, caplog):
    url = host.serve("/file.bin", CONTENT)
    spec = unknown(url)
    path = download.fetch("file.bin", spec, folder)
    assert "No checksum" in caplog.text
    path.write_bytes(b"rotten")
    assert download.fetch("file.bin", spec, folder).read_bytes() == CONTENT
    assert names(folder) == ["file.bin", "file.bin.rejected"]


@pytest.mark.parametrize(
    "checksum",
    [
        f"md5:{hashlib.md5(CONTENT).hexdigest()}",
        sha256(CONTENT),
        "git_blob:" + hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest(),
    ],
)
def test_kinds_of_checksums(folder, checksum):
    (folder / "file.bin").write_bytes(CONTENT)
    assert datasets.matches(folder / "file.bin", checksum)
    (folder / "file.bin").write_bytes(CONTENT[1:])
    assert not datasets.matches(folder / "file.bin", checksum)


def test_google_drive_is_asked_through_gdown(folder, monkeypatch):
    asked = {}

    def fake(**options):
        asked.update(options)
        Path(options["output"]).write_bytes(CONTENT)

    monkeypatch.setattr("gdown.download", fake)
    path = download.fetch("file.bin", wanted({"drive": "an-id"}), folder)
    assert path.read_bytes() == CONTENT
    assert asked["id"] == "an-id" and "url" not in asked and asked["resume"]


@pytest.mark.parametrize("known", [True, False])
def test_a_part_from_google_drive_counts_only_under_a_checksum(folder, monkeypatch, known):
    seen = []

    def break_off(**options):
        where = Path(options["output"]).parent
        seen.append([path.name for path in where.iterdir()])
        (where / "filexyz.part").write_bytes(CONTENT[:9])
        raise OSError("broken off")

    monkeypatch.setattr("gdown.download", break_off)
    spec = (wanted if known else unknown)({"drive": "an-id"})
    for _ in range(2):
        with pytest.raises(UserError, match="broken off"):
            download.fetch("file.bin", spec, folder)
    assert seen == [[], ["filexyz.part"] if known else []]


@pytest.mark.parametrize("spec", [{"file": "x"}, {"hf": "a/b"}, {"drive": "x", "file": "y"}, {}])
def test_a_source_of_no_known_kind(spec):
    with pytest.raises(UserError, match="is not one of"):
        datasets.Source.parse(spec)


def test_names_of_a_download_stay_inside(folder, monkeypatch):
    for key in ({"into": "../../../out"}, {"into": "/out"}, {"nested": ["../x.zip"]}):
        with pytest.raises(UserError, match=r"\.\.|/out"):
            datasets.Download(["https://example.org/x.zip"], **key)
    monkeypatch.setattr(
        "gdown.download", lambda **options: Path(options["output"]).write_bytes(CONTENT)
    )
    source = {"drive": "../../outside", "checksum": wanted().checksum}
    with pytest.raises(UserError, match="outside"):
        download.fetch("file.bin", datasets.Download([source]), folder)
    assert not (folder.parent.parent / "outside").exists()


def test_a_file_of_this_machine(folder, tmp_path):
    (tmp_path / "mine.tar.gz").write_bytes(CONTENT)
    path = download.fetch("file.bin", wanted(str(tmp_path / "mine.tar.gz")), folder)
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "mine.tar.gz").is_file()


def hub(host, *, revision="main", kind="models", **files):
    """Make the host a Hugging Face hub with one repo."""
    tree = []
    for name, content in files.items():
        host.files[f"/me/photos/resolve/{revision}/{name}"] = content
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        tree.append({"type": "file", "path": name, "size": len(content), "oid": "0", "lfs": lfs})
    host.files[f"/api/{kind}/me/photos/tree/{revision}"] = json.dumps(tree).encode()


def command(host, tmp_path, *where, **spec):
    """`latteclip download-dataset` against a hub; its exit status, log and output."""
    values = {"downloads": {"images.tar.gz": {"sources": list(where), **spec}}}
    output = tmp_path / "resources" / "demo" / "data"
    arguments = ["--dataset", "demo", "--settings", json.dumps(values), "--output", str(output)]
    done = subprocess.run(
        [Path(sys.executable).with_name("latteclip"), "download-dataset", *arguments],
        env={**os.environ, "HF_ENDPOINT": host.url, "HF_HUB_OFFLINE": "0"}
        | {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, output


def test_a_name_unknown_in_advance_is_looked_up_on_hugging_face(host, tmp_path):
    packed = zipped({"images/a.jpg": jpeg()})
    hub(host, **{"OxfordFlowers.zip": packed, "other.zip": b"x"})
    source = {"hf": "me/photos", "file": "*flower*.zip", "checksum": "hub"}
    status, log, output = command(host, tmp_path, source)
    assert status == 0, log
    assert "its name was looked up, it is OxfordFlowers.zip" in log
    assert (output / "images" / "a.jpg").is_file()
    assert names(output.parent / "downloads") == ["OxfordFlowers.zip"]
    asked = len(host.requests)
    (output / "images" / "a.jpg").unlink()
    status, log, output = command(host, tmp_path, source)
    assert status == 0 and (output / "images" / "a.jpg").is_file(), log
    assert len(host.requests) == asked


def test_the_hub_says_the_checksum(host, tmp_path):
    hub(host, **{"pack.zip": zipped({"images/a.jpg": jpeg()})})
    host.files["/me/photos/resolve/main/pack.zip"] = b"broken"
    source = {"hf": "me/photos", "file": "pack.zip", "checksum": "hub"}
    status, log, output = command(host, tmp_path, source)
    assert status == 2 and "and not sha256:" in log, log
    assert not output.exists()
