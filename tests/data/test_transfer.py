import gzip
import os
import subprocess
import sys
import threading

import pytest
from support.downloads import CONTENT, wanted

from latteclip.core.errors import UserError
from latteclip.data import download, drive, transfer

OTHER = CONTENT[::-1]
VERSIONS = {
    "ETag": {},
    "weak ETag": {"ETag": 'W/"1"'},
    "date": {"ETag": None, "Last-Modified": "Mon, 02 Jan 2023 10:00:00 GMT"},
}


def fetched(folder, *urls):
    """Fetch a file that has no checksum."""
    return download.fetch("file.bin", download.Download(list(urls)), folder).read_bytes()


def kept(folder):
    """Bytes of what broken transfers left."""
    return sum(path.stat().st_size for path in folder.rglob("file.part"))


@pytest.fixture
def impatient(monkeypatch):
    """Give up on what is slow at once."""
    for module, name in ((transfer, "WINDOW"), (transfer, "ANSWER"), (drive, "WINDOW")):
        monkeypatch.setattr(module, name, 0.3)
    monkeypatch.setattr(transfer, "CHECKED", 0.05)


@pytest.fixture
def broken_off(host, folder, monkeypatch):
    """Breaks off the transfer of a file that is served with some headers; returns its URL."""

    def begin(headers, path="/file.bin"):
        monkeypatch.setattr(transfer, "RETRIES", 0)
        host.cut[path], host.headers[path] = 1, headers
        url = host.serve(path, CONTENT)
        with pytest.raises(UserError, match=f"incomplete .*{len(CONTENT) // 2} bytes read"):
            fetched(folder, url)
        assert kept(folder) == len(CONTENT) // 2
        return url

    return begin


@pytest.mark.parametrize("headers", VERSIONS.values(), ids=VERSIONS)
def test_the_same_file_is_continued(host, folder, broken_off, headers):
    url = broken_off(headers)
    assert fetched(folder, url) == CONTENT
    assert [start for _, start in host.requests] == [0, len(CONTENT) // 2]


CHANGED = {
    "ETag": ({}, {}),
    "weak ETag": (VERSIONS["weak ETag"], {"ETag": 'W/"2"'}),
    "date": (VERSIONS["date"], {"ETag": None, "Last-Modified": "Tue, 03 Jan 2023 10:00:00 GMT"}),
    "nothing tells": ({"ETag": None}, {"ETag": None}),
}


@pytest.mark.parametrize(("before", "after"), CHANGED.values(), ids=CHANGED)
def test_a_file_that_changed_meanwhile_is_fetched_anew(host, folder, broken_off, before, after):
    url = broken_off(before)
    host.headers["/file.bin"] = after
    host.serve("/file.bin", OTHER)
    assert fetched(folder, url) == OTHER


def test_a_part_that_is_longer_than_the_file_is_dropped(host, folder, broken_off):
    url = broken_off({})
    host.refused["/file.bin"] = (416, "RangeNotSatisfiable")
    with pytest.raises(UserError, match="416"):
        fetched(folder, url)
    host.refused.clear()
    assert fetched(folder, url) == CONTENT
    assert [start for _, start in host.requests] == [0, len(CONTENT) // 2, 0, 0]


def test_a_host_without_ranges_is_asked_once(host, folder, broken_off):
    url = broken_off({})
    host.ranges = False
    assert fetched(folder, url) == CONTENT
    assert len(host.requests) == 2


def test_a_part_without_its_note_is_not_continued(host, folder, broken_off):
    """As a run leaves it that is killed before the first byte of a new version."""
    url = broken_off({})
    [note] = folder.rglob("*.part.json")
    note.write_text("{", encoding="utf-8")
    assert fetched(folder, url) == CONTENT
    assert host.requests[-1] == ("/file.bin", 0)


def test_what_comes_compressed_is_refused_and_not_unpacked(host, folder, waits):
    host.headers["/file.bin"] = {"Content-Encoding": "gzip"}
    url = host.serve("/file.bin", gzip.compress(bytes(50 * 2**20)))
    with pytest.raises(UserError, match=r"it comes compressed \('gzip'\)"):
        fetched(folder, url)
    assert len(host.requests) == 1 and not kept(folder)


def test_a_compressed_file_that_is_called_so_is_kept_as_it_comes(host, folder):
    """Apache says so of the archive itself."""
    packed = gzip.compress(CONTENT)
    host.headers["/images.tar.gz"] = {"Content-Encoding": "x-gzip"}
    assert fetched(folder, host.serve("/images.tar.gz", packed)) == packed


def test_a_file_in_drops_is_given_up_and_goes_on_later(host, folder, impatient):
    url = host.serve("/file.bin", CONTENT)
    host.drops["/file.bin"] = "body"
    with pytest.raises(UserError, match=r"\d+ bytes came in \d+ s, and 1000 per second are the le"):
        fetched(folder, url)
    come = kept(folder)
    assert 0 < come < 1000 and len(host.requests) == 1
    host.drops.clear()
    assert fetched(folder, url) == CONTENT
    assert host.requests[-1] == ("/file.bin", come)


def test_an_answer_that_never_begins_is_given_up(host, folder, impatient):
    host.drops["/file.bin"] = "head"
    with pytest.raises(UserError, match="no answer came within 0 s"):
        fetched(folder, host.serve("/file.bin", CONTENT))


def test_google_drive_in_drops_is_given_up(folder, impatient, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr("gdown.download", lambda **_: never.wait())
    with pytest.raises(UserError, match="id=an-id: 0 bytes came"):
        fetched(folder, {"drive": "an-id"})
    never.set()


def test_a_part_from_google_drive_counts_only_under_a_checksum(folder, monkeypatch):
    """What it serves under an id may have changed, and nothing says so."""
    seen = []

    def break_off(**options):
        where = transfer.Path(options["output"]).parent
        seen.append([path.name for path in where.iterdir()])
        (where / "filexyz.part").write_bytes(CONTENT[:9])
        raise OSError("broken off")

    monkeypatch.setattr("gdown.download", break_off)
    source = {"drive": "an-id"}
    for spec in (download.Download([source]), download.Download([source]), wanted(source)):
        with pytest.raises(UserError, match="broken off"):
            download.fetch("file.bin", spec, folder)
    assert seen == [[], [], ["filexyz.part"]]


HUB_IN_DROPS = """
import sys
from latteclip.data import file_sources, transfer
file_sources.HUB_WINDOW, transfer.CHECKED = 1.0, 0.05
try:
    file_sources.Hub("me/photos", "pack.bin").fetch(transfer.Path(sys.argv[1]))
except transfer.FetchError as error:
    print(error)
"""


def test_a_hub_in_drops_is_given_up(host, tmp_path):
    host.serve_repo("me/photos", {"pack.bin": CONTENT})
    host.drops["/me/photos/resolve/main/pack.bin"] = "body"
    environment = {**os.environ, "HF_ENDPOINT": host.url, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    program = [sys.executable, "-c", HUB_IN_DROPS, tmp_path]
    run = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert "bytes came in 1 s" in run.stdout, run.stderr


def test_redirections_are_followed_but_not_for_ever(host, folder):
    host.redirected = {"/old.bin": "/new.bin", "/round": "/round"}
    host.serve("/new.bin", CONTENT)
    assert fetched(folder, f"{host.url}/round", f"{host.url}/old.bin") == CONTENT
    assert len([path for path, _ in host.requests if path == "/round"]) == transfer.REDIRECTS


def test_a_message_of_a_server_is_one_line_that_can_be_printed():
    error = ValueError("\x1b[2Jcleared" + "x" * 9999 + "\nmore")
    shown = transfer.message_line(error)
    assert shown.startswith("?[2Jcleared") and len(shown) == transfer.LONGEST


def test_what_a_download_names_stays_inside():
    for key in ({"into": "../../../out"}, {"into": "/out"}, {"nested": ["../x.zip"]}):
        with pytest.raises(UserError, match="leads out of the dataset's folder"):
            download.Download(["https://example.org/x.zip"], **key)


def test_a_source_cannot_choose_a_place_outside_the_downloads(folder, monkeypatch):
    monkeypatch.setattr(
        "gdown.download", lambda **options: transfer.Path(options["output"]).write_bytes(CONTENT)
    )
    source = {"drive": "../../outside", "checksum": wanted().checksum}
    with pytest.raises(UserError, match="which no file to be kept may have"):
        download.fetch("file.bin", download.Download([source]), folder)
    assert not (folder.parent.parent / "outside").exists()


def test_a_part_that_nobody_asked_for_is_refused(host, folder, monkeypatch):
    url = host.serve("/file.bin", CONTENT)
    monkeypatch.setattr("support.web.WHOLE", 206)
    with pytest.raises(UserError, match="it answers with status 206 and no file"):
        fetched(folder, url)
