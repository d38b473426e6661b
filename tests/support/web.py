"""A web server on 127.0.0.1 with the faults of real ones, and downloads from it."""

import contextlib
import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gdown
import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
from support.shards import picture

from latteclip.config.keys import DownloadSection, SourceSection
from latteclip.data.download_dataset import DownloadSettings

WHOLE = 200  # the status of an answer with the whole file
COMMIT = "c" * 40  # of every repo that it serves as a Hugging Face hub
TOKEN = "hf_tokenThatMayNotBeShown"


@contextlib.contextmanager
def listening(handler):
    """Serve by a thread; the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Host:
    """Serves `files` (path -> bytes); notes each request as (path, first byte asked for)."""

    def __init__(self):
        self.files = {}
        self.cut = {}  # path -> how many answers end at half of what they announce
        self.busy = {}  # path -> how many answers are 503
        self.refused = {}  # start of a path -> (status, error code of the Hugging Face hub)
        self.ranges = True
        self.requests = []

    def serve(self, path, content):
        self.files[path] = content
        return self.url + path

    def serve_repo(self, repo, files):
        """Serve a model repo of the Hugging Face hub: {name: content}."""
        tree = []
        for name, content in files.items():
            for place in ("main", COMMIT):
                self.files[f"/{repo}/resolve/{place}/{name}"] = content
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"oid": digest, "size": len(content), "pointerSize": 1}
            size = len(content)
            tree.append(
                {"type": "file", "path": name, "size": size, "oid": "0", "lfs": lfs}
            )
        siblings = [{"rfilename": name} for name in files]
        described = {"id": repo, "sha": COMMIT, "siblings": siblings}
        self.files[f"/api/models/{repo}"] = json.dumps(described).encode()
        for place in ("main", COMMIT):
            self.files[f"/api/models/{repo}/revision/{place}"] = json.dumps(
                described
            ).encode()
            self.files[f"/api/models/{repo}/tree/{place}"] = json.dumps(tree).encode()

    @contextlib.contextmanager
    def running(self):
        with listening(type("Handler", (_Handler,), {"host": self})) as self.url:
            yield self

    @contextlib.contextmanager
    def as_hub(self, cache, offline=False):
        """Let huggingface_hub, which reads its environment when it is imported, ask this host."""
        place = "{repo_id}/resolve/{revision}/{filename}"
        constants = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.url}/{place}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_XET": True,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(huggingface_hub.constants, name, value)
            patch.setattr(huggingface_hub.hf_api.api, "endpoint", self.url)
            patch.setenv("HF_TOKEN", TOKEN)
            patch.setattr("time.sleep", lambda seconds: None)  # between retries
            yield

    def spend(self, faults, path):
        """Whether a fault is due; each is due a number of times."""
        faults[path] = faults.get(path, 0) - 1
        return faults[path] >= 0


class _Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        host, path = self.host, self.path.split("?")[0]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        host.requests.append((path, start))
        if body and host.spend(host.busy, path):
            return self.send_error(503)
        for start_of_path, refusal in host.refused.items():
            if path.startswith(start_of_path):
                return self.refuse(*refusal)
        if path not in host.files:
            return self.refuse(404, "EntryNotFound")
        content = host.files[path]
        digest, size = hashlib.sha256(content).hexdigest(), len(content)
        partial = asked is not None and host.ranges
        rest = content[start:] if partial else content
        kind = (
            "application/json" if path.startswith("/api/") else "application/octet-stream"
        )
        headers = {
            **{"ETag": f'"{digest}"', "Content-Type": kind, "Content-Length": len(rest)},
            **{
                "X-Repo-Commit": COMMIT,
                "X-Linked-ETag": f'"{digest}"',
                "X-Linked-Size": size,
            },
        }
        if partial:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.head(206 if partial else WHOLE, headers)
        with contextlib.suppress(OSError):
            if body:
                self.wfile.write(
                    rest[: len(rest) // 2] if host.spend(host.cut, path) else rest
                )
        return None

    def refuse(self, status, code):
        # The commit lets clients note that there is no such file.
        self.head(
            status, {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "Content-Length": 0}
        )

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()


def tar(files, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sha256(content):
    """A checksum as a dataset's file writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


CONTENT = bytes(range(256)) * 8192  # 2 MB: several pieces
ARCHIVE = tar({"images/a.jpg": picture(0), "images/b.jpg": picture(1)})


@pytest.fixture
def host():
    with Host().running() as running:
        yield running


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited between tries, without waiting."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    module = sys.modules[
        gdown.download.__module__
    ]  # hidden behind the function of its name
    monkeypatch.setattr(module, "_wait_or_cancel", lambda *, seconds, cancel: None)
    return waited


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "resources" / "demo" / "downloads"
    path.mkdir(parents=True)
    return path


def wanted(*where, content=CONTENT, **more):
    return DownloadSection(sources=list(where), checksum=sha256(content), **more)


def settings(*where, content=ARCHIVE, **more):
    file = wanted(*where, content=content, **more)
    return DownloadSettings(
        source=SourceSection(downloads={"images.tar.gz": file}),
        title="A title",
        licence="A licence",
        citation="A paper",
    )
