import gzip

import pytest
from support.downloads import CONTENT, wanted

from latteclip.core.errors import UserError
from latteclip.data import download, drive, transfer

OTHER = CONTENT[::-1]


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


def test_the_same_file_is_continued(host, folder, broken_off):
    url = broken_off({})
    assert fetched(folder, url) == CONTENT
    assert [start for _, start in host.requests] == [0, len(CONTENT) // 2]


CHANGED = {
    "ETag": ({}, {}),
    "date": (
        {"ETag": None, "Last-Modified": "Mon, 02 Jan 2023 10:00:00 GMT"},
        {"ETag": None, "Last-Modified": "Tue, 03 Jan 2023 10:00:00 GMT"},
    ),
    "nothing tells": ({"ETag": None}, {"ETag": None}),
}


@pytest.mark.parametrize(("before", "after"), CHANGED.values(), ids=CHANGED)
def test_a_file_that_changed_meanwhile_is_fetched_anew(host, folder, broken_off, before, after):
    url = broken_off(before)
    host.headers["/file.bin"] = after
    host.serve("/file.bin", OTHER)
    assert fetched(folder, url) == OTHER


def test_what_comes_compressed_is_refused_and_not_unpacked(host, folder, waits):
    host.headers["/file.bin"] = {"Content-Encoding": "gzip"}
    url = host.serve("/file.bin", gzip.compress(bytes(50 * 2**20)))
    with pytest.raises(UserError, match="gzip"):
        fetched(folder, url)
    assert len(host.requests) == 1 and not kept(folder)


def test_a_file_in_drops_is_given_up_and_goes_on_later(host, folder, impatient):
    url = host.serve("/file.bin", CONTENT)
    host.drops["/file.bin"] = "body"
    with pytest.raises(UserError, match=r"file\.bin"):
        fetched(folder, url)
    come = kept(folder)
    assert 0 < come < 1000 and len(host.requests) == 1
    host.drops.clear()
    assert fetched(folder, url) == CONTENT
    assert host.requests[-1] == ("/file.bin", come)


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


def test_redirections_are_followed_but_not_for_ever(host, folder):
    host.redirected = {"/old.bin": "/new.bin", "/round": "/round"}
    host.serve("/new.bin", CONTENT)
    assert fetched(folder, f"{host.url}/round", f"{host.url}/old.bin") == CONTENT
    assert len([path for path, _ in host.requests if path == "/round"]) == transfer.REDIRECTS


def test_what_a_download_names_stays_inside():
    for key in ({"into": "../../../out"}, {"into": "/out"}, {"nested": ["../x.zip"]}):
        with pytest.raises(UserError, match=r"\.\.|/out"):
            download.Download(["https://example.org/x.zip"], **key)


def test_a_source_cannot_choose_a_place_outside_the_downloads(folder, monkeypatch):
    monkeypatch.setattr(
        "gdown.download", lambda **options: transfer.Path(options["output"]).write_bytes(CONTENT)
    )
    source = {"drive": "../../outside", "checksum": wanted().checksum}
    with pytest.raises(UserError, match="outside"):
        download.fetch("file.bin", download.Download([source]), folder)
    assert not (folder.parent.parent / "outside").exists()
