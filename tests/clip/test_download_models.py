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
CAPTION = """
import json, sys
from PIL import Image
from latteclip.captions.engine import start
from latteclip.captions.questions import Request
from latteclip.config.keys import CaptionerSection
captioner = start(CaptionerSection(**json.loads(sys.argv[1])), 1)
[(_, answer)] = captioner.answer([Request(0, [Image.new("RGB", (64, 64))], "What is it?")])
print(answer.n_tokens)
"""
CAPTIONER = {
    "engine": "transformers",
    "model": "me/llava",
    "revision": None,
    "dtype": "float32",
    "max_new_tokens": 8,
    "max_model_len": 256,
    "gpu_memory_utilization": 0.5,
    "batch_size": 4,
}


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
    assert note["model"] == "hf-hub:me/both" and note["pretrained"] is None
    both, bert = note["repos"]
    assert (both["repo"], both["commit"]) == ("me/both", COMMIT)
    assert (
        both["files"].items()
        >= {name: len(content) for name, content in files.items()}.items()
    )
    assert (bert["repo"], list(bert["files"])) == ("me/bert", ["config.json"])
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


def test_a_captioner_is_fetched_and_answers_offline(gone):
    with gone.running():
        serve_captioner(gone, **OTHER_FORMATS)
        status, said = gone.download("captioner", model="me/llava")
        assert status == 0, said
    [repo] = gone.noted()["repos"]
    assert (repo["repo"], repo["commit"]) == ("me/llava", COMMIT)
    sizes = {name: len(content) for name, content in contents(DEMO_LLAVA).items()}
    assert repo["files"] == sizes
    assert not gone.fetched() & (OTHER_FORMATS.keys() - {"onnx/config.json"})
    done = gone.python(CAPTION, json.dumps(CAPTIONER), offline=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_without_a_network(gone):
    sentence = refusal(gone.download("captioner", model="me/llava"))
    assert "me/llava" in sentence and "HF_ENDPOINT" in sentence


@pytest.mark.parametrize(
    ("kind", "model", "status", "code", "hint"),
    [
        ("clip", "hf-hub:me/clip", 403, "GatedRepo", "terms"),
        ("captioner", "me/llava", 404, "RevisionNotFound", "private"),
    ],
)
def test_a_repo_that_is_closed_or_not_there(hub, kind, model, status, code, hint):
    hub.refused = {"/me/": (status, code), "/api/models/me/": (status, code)}
    sentence = refusal(hub.download(kind, model=model))
    assert model in sentence and hint in sentence and "HF_TOKEN" in sentence


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


def test_a_shard_that_the_cache_lacks_is_noticed_offline(hub):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    files = {
        **contents(DEMO_LLAVA),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    hub.serve_repo("me/llava", files)
    sentence = refusal(hub.download("captioner", model="me/llava"))
    assert "model-2.safetensors" in sentence
