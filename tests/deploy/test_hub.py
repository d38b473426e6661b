"""Uploads to a hub on this machine, which answers as that of Hugging Face."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from support.taken import Taken
from support.tiny import DEMO_CLIP

from latteclip.cli import main
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.deploy import hub_upload

TOKEN = "hf_never_in_a_message"


class Hub(ThreadingHTTPServer):
    """A hub with one repository, which takes new ones and their commits."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.created, self.files, self.status, self.requests = [], {}, None, 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.requests += 1
        if self.server.status:
            return self.answer(self.server.status, {"error": "refused"})
        if "/mine/there" in self.path:
            return self.answer(200, {"id": "mine/there", "siblings": [], "sha": "0" * 40})
        if "whoami" in self.path:
            return self.answer(200, {"name": "mine", "type": "user", "orgs": []})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def do_POST(self):
        self.server.requests += 1
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        if self.path.endswith("/repos/create"):
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            self.server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{self.server.address}/mine/new"})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            commit = {
                "commitUrl": f"{self.server.address}/mine/new/commit/1",
                "commitOid": "1" * 40,
            }
            return self.answer(200, {**commit, "pullRequestUrl": None})
        return self.answer(200, {})

    def chunks(self):
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, torch.device("cpu"))
    head = Classifier.of(torch.randn(3, clip.config["embed_dim"]))
    clips.save(clip, head, ["a", "b", "c"], "a {}.", folder)
    return folder


def export(model, out, *words):
    return main.main(["export", str(model), str(out), "--format", "open_clip", *words])


def test_a_model_goes_to_a_private_repository(hub, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(model, out, "--push-to-hub", "mine/new") == 0
    [created] = hub.created
    assert created["name"] == "new" and created["visibility"] == "private"
    on_disk = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {name: hub.files[name] for name in on_disk} == on_disk
    printed = capsys.readouterr()
    assert "private model mine/new" in printed.out
    assert TOKEN not in printed.out + printed.err


def test_a_dry_run_asks_nothing_and_public_is_said(hub, model, tmp_path, capsys):
    words = ["--push-to-hub", "mine/new", "--public", "--dry-run"]
    assert export(model, tmp_path / "out", *words) == 0
    assert "public model mine/new" in capsys.readouterr().out
    assert hub.requests == 0
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("repo", ["mine/bad name!", "name", "a/b/c"])
def test_a_dry_run_finds_a_name_that_no_repository_has(hub, model, tmp_path, capsys, repo):
    out = tmp_path / "out"
    assert export(model, out, "--push-to-hub", repo, "--dry-run") == 2
    assert f"--push-to-hub {repo}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("repo", "status", "named"),
    [
        ("mine/there", None, "mine/there exists"),
        ("no/such/name", None, "no/such/name"),
        ("mine/new", 401, "401.*hf auth login"),
        ("mine/new", 403, "403.*hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_and_nothing_is_written(
    hub, model, tmp_path, capsys, repo, status, named
):
    hub.status = status
    assert export(model, tmp_path / "out", "--push-to-hub", repo) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert re.search(named, printed)
    assert not (tmp_path / "out").exists() and hub.created == []


def test_a_hub_that_does_not_answer_is_one_sentence(hub, model, tmp_path, capsys):
    hub.shutdown()
    hub.server_close()
    assert export(model, tmp_path / "out", "--push-to-hub", "mine/new") == 2
    assert hub.address in capsys.readouterr().err


def test_offline_and_stray_options_are_refused(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub_upload.constants, "HF_HUB_OFFLINE", True)
    assert export(model, tmp_path / "out", "--push-to-hub", "mine/new") == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert export(model, tmp_path / "out", "--public") == 2
    assert "--push-to-hub" in capsys.readouterr().err


def test_labels_go_with_their_images(hub, tmp_path, capsys, monkeypatch):
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    taken = Taken(tmp_path / "made")
    words = ["labels", "export", str(taken.folder), "--format", "datasets"]
    words += ["--output", str(tmp_path / "out"), "--push-to-hub", "mine/new"]
    assert main.main(words) == 2  # without the images
    assert "--copy" in capsys.readouterr().err
    assert main.main([*words, "--copy"]) == 0
    assert hub.created[0]["type"] == "dataset"
    assert set(hub.files) >= {"README.md", "data/train-00000.parquet"}
