"""Models are fetched from a hub on 127.0.0.1 and then loaded with the hub gone.

In processes of their own, for huggingface_hub reads its environment when it is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import DEMO_CLIP, DEMO_LLAVA, write_backbone, write_encoder
from support.web import COMMIT, Host

TOKEN = "hf_tokenThatMayNotBeShown"
COMMAND = """
import sys
from latteclip.cli.main import main
sys.exit(main())
"""
ENCODE = """
import sys, torch
from latteclip.clip import encode
from latteclip.clip import model as clips
found = clips.load(sys.argv[1], sys.argv[2] or None, torch.device("cpu"))
print(encode.encode_texts(found, found.tokenizer(["a photo of a red thing"])).norm().item())
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Hub(Host):
    """A hub, a machine with a cache of its own, and the processes that run there."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.cache = folder / "hf"
        self.note = folder / "note.json"
        self.prelude = ""

    def python(self, code, *arguments, offline=False):
        return subprocess.run(
            [sys.executable, "-c", self.prelude + code, *map(str, arguments)],
            env={
                **os.environ,
                "HF_ENDPOINT": self.url,
                "HF_HOME": str(self.cache),
                "HF_HUB_OFFLINE": str(int(offline)),
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": TOKEN,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def download(self, kind, offline=False, **settings):
        """`latteclip download-model`; its exit status and what it said."""
        options = ["--settings", json.dumps({"kind": kind, **settings})]
        options += ["--output", self.note]
        done = self.python(COMMAND, "download-model", *options, offline=offline)
        assert TOKEN not in done.stdout + done.stderr
        assert self.note.exists() == (done.returncode == 0)
        return done.returncode, done.stderr

    def noted(self):
        return json.loads(self.note.read_text())

    def fetched(self):
        """Names of the files of repos that were asked for."""
        return {Path(path).name for path, _ in self.requests if "/resolve/" in path}


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    with hub.running():
        yield hub


@pytest.fixture
def gone(tmp_path):
    """A hub that no longer answers; its method `running` makes it answer for a while."""
    with Hub(tmp_path).running() as hub:
        return hub


def refusal(told):
    """The one sentence of a command that failed."""
    status, said = told
    assert status == 2, said
    [sentence] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return sentence


def assert_encodes_offline(hub, model, pretrained=""):
    done = hub.python(ENCODE, model, pretrained, offline=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1, abs=1e-5)


def test_a_clip_repo_is_fetched_loaded_and_noted_again_offline(gone, tmp_path):
    """Its text tower is of transformers: the configuration is fetched, the weights are not."""
    write_backbone("hf_mean", tmp_path / "both")
    files = contents(tmp_path / "both")
    config = json.loads(files["open_clip_config.json"])
    config["model_cfg"]["text_cfg"] |= {
        "hf_model_name": "me/bert",
        "hf_tokenizer_name": "me/both",
    }
    files["open_clip_config.json"] = json.dumps(config).encode()
    with gone.running():
        gone.serve_repo("me/both", {**files, "open_clip_pytorch_model.bin": b"a pickle"})
        gone.serve_repo("me/bert", contents(tmp_path / "both" / "text_tower"))
        status, said = gone.download("clip", model="hf-hub:me/both")
        assert status == 0 and str(gone.cache / "hub") in said, said
    note = gone.noted()
    commits = {"me/both": COMMIT, "me/bert": COMMIT}
    assert note == {
        "model": "hf-hub:me/both",
        "pretrained": None,
        "revision": None,
        "commits": commits,
    }
    assert "open_clip_pytorch_model.bin" not in gone.fetched()
    assert_encodes_offline(gone, "hf-hub:me/both")
    gone.prelude = "import time; time.sleep = lambda seconds: None\n"  # between retries
    for offline in (True, False):  # the hub may be asked, and is silent
        gone.note.unlink()
        assert gone.download("clip", offline=offline, model="hf-hub:me/both")[0] == 0
        assert gone.noted() == note


def serve_captioner(hub, **more):
    hub.serve_repo("me/llava", {**contents(DEMO_LLAVA), **more})


OTHER_FORMATS = {
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same weights",
    "modeling_llava.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
}


def test_only_the_files_of_a_captioner_that_engines_read_are_fetched(hub):
    serve_captioner(hub, **OTHER_FORMATS)
    status, said = hub.download("captioner", model="me/llava")
    assert status == 0, said
    assert hub.noted()["commits"] == {"me/llava": COMMIT}
    assert contents(DEMO_LLAVA).keys() <= hub.fetched()
    assert not hub.fetched() & (OTHER_FORMATS.keys() - {"onnx/config.json"})


@pytest.mark.parametrize(
    ("kind", "model", "refused"),
    [
        ("clip", "hf-hub:me/clip", (403, "GatedRepo")),
        ("captioner", "me/llava", None),
    ],
)
def test_a_repo_that_cannot_be_reached_is_one_sentence(gone, kind, model, refused):
    if refused is None:
        sentence = refusal(gone.download(kind, model=model))
    else:
        gone.refused = {"/me/": refused, "/api/models/me/": refused}
        with gone.running():
            sentence = refusal(gone.download(kind, model=model))
    assert model in sentence and "HF_TOKEN" in sentence and "HF_ENDPOINT" in sentence


@pytest.mark.parametrize("kind", ["clip", "captioner", "image_encoder"])
def test_a_repo_without_safetensors_is_refused(hub, tmp_path, kind):
    write_encoder(tmp_path / "encoder")
    folder = {
        "clip": DEMO_CLIP,
        "captioner": DEMO_LLAVA,
        "image_encoder": tmp_path / "encoder",
    }[kind]
    files = contents(folder).items()
    left = {name: content for name, content in files if not name.endswith(".safetensors")}
    hub.serve_repo("me/model", {**left, "pytorch_model.bin": b"x"})
    model = "me/model" if kind == "captioner" else "hf-hub:me/model"
    assert "safetensors" in refusal(hub.download(kind, model=model))
    assert "pytorch_model.bin" not in hub.fetched()
