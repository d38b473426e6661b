"""What is downloaded, from a server that serves it."""

import sys

import gdown
import pytest
from support.web import Host, jpeg, sha256, tar

from latteclip.data import datasets, download_dataset

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
    return datasets.Download(list(where), sha256(content), **more)


def settings(*where, content=ARCHIVE, **more):
    spec = {"sources": list(where), "checksum": sha256(content)} | more
    return download_dataset.DownloadSettings(
        {"images.tar.gz": spec}, "A title", "A licence", "A paper"
    )
