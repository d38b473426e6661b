"""A web server on 127.0.0.1 with the faults of real ones, and small archives to serve from it."""

import contextlib
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

WHOLE = 200  # the status of an answer with the whole file
COMMIT = "c" * 40  # of every repo that it serves as a Hugging Face hub


class Host:
    """Serves `files` (path -> bytes); notes each request as (path, first byte asked for)."""

    def __init__(self):
        self.files = {}
        self.cut = {}  # path -> how many answers end at half of what they announce
        self.busy = {}  # path -> how many answers are 503
        self.refused = {}  # start of a path -> (status, error code of the Hugging Face hub)
        self.ranges = True
        self.drops = set()  # paths whose content comes byte by byte
        self.ending = threading.Event()
        self.requests = []
        handler = type("Handler", (_Handler,), {"host": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, path, content):
        """Serve bytes; returns their URL."""
        self.files[path] = content
        return self.url + path

    def serve_repo(self, repo, files, revision="main"):
        """Serve a model repo of the Hugging Face hub: {name: content}."""
        tree = []
        for name, content in files.items():
            for place in (revision, COMMIT):
                self.files[f"/{repo}/resolve/{place}/{name}"] = content
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"oid": digest, "size": len(content), "pointerSize": 1}
            size = len(content)
            tree.append({"type": "file", "path": name, "size": size, "oid": "0", "lfs": lfs})
        said = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        for place in (revision, COMMIT):
            self.files[f"/api/models/{repo}/revision/{place}"] = json.dumps(said).encode()
            self.files[f"/api/models/{repo}/tree/{place}"] = json.dumps(tree).encode()
        self.files[f"/api/models/{repo}"] = json.dumps(said).encode()

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.ending.set()
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def spend(self, faults, path):
        """Whether a fault is due; each is due a number of times."""
        faults[path] = faults.get(path, 0) - 1
        return faults[path] >= 0


class _Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.path.split("?")[0]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.host.requests.append((path, start))
        if body and self.host.spend(self.host.busy, path):
            self.send_error(503)
            return
        for start_of_path, (status, code) in self.host.refused.items():
            if path.startswith(start_of_path):
                self.refuse(status, code)
                return
        if path not in self.host.files:
            self.refuse(404, "EntryNotFound")
            return
        content = self.host.files[path]
        digest = hashlib.sha256(content).hexdigest()
        partial = asked is not None and self.host.ranges
        rest = content[start:] if partial else content
        self.send_response(206 if partial else WHOLE)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-ETag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        kind = "application/json" if path.startswith("/api/") else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if body and path in self.host.drops:
            self.drip(rest)
        elif body:
            cut = self.host.spend(self.host.cut, path)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(rest[: len(rest) // 2] if cut else rest)

    def drip(self, content):
        """Send byte by byte, until the other side or the test ends."""
        with contextlib.suppress(OSError):
            for byte in content:
                if self.host.ending.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)  # lets clients note that there is no such file
        self.send_header("Content-Length", "0")
        self.end_headers()


def jpeg(colour=(10, 200, 30), size=(12, 8)):
    """A small real JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(files, mode="w:gz"):
    """A tar archive of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files):
    """A zip archive of files by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sha256(content):
    """A checksum as a dataset's file writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
