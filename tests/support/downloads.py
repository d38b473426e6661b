"""Downloads, and a server that serves them."""

import sys

import gdown
import pytest
from support.web import Host, jpeg, sha256, tar

from latteclip.data.download_dataset import Download, DownloadSettings

CONTENT = bytes(range(256)) * 8192  # 2 MB: several pieces
ARCHIVE = tar({"images/a.jpg": jpeg(), "images/b.jpg": jpeg((1, 2, 3))})


@pytest.fixture
def host():
    with Host().running() as running:
        yield running


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited between tries, without waiting."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    module = sys.modules[gdown.download.__module__]  # hidden behind the function of its name
    monkeypatch.setattr(module, "_wait_or_cancel", lambda *, seconds, cancel: None)
    return waited


@pytest.fixture
def folder(tmp_path):
    """The downloads folder."""
    path = tmp_path / "resources" / "demo" / "downloads"
    path.mkdir(parents=True)
    return path


def wanted(*where, content=CONTENT, **more):
    return Download(list(where), sha256(content), **more)


def settings(*where, content=ARCHIVE, **more):
    file = wanted(*where, content=content, **more)
    return DownloadSettings({"images.tar.gz": file}, "A title", "A licence", "A paper")
