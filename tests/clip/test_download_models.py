"""Models are fetched from a hub on 127.0.0.1 and then loaded with the hub gone.

In processes of their own, for huggingface_hub reads its environment when it is imported.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import DEMO_CLIP, DEMO_LLAVA, write_backbone, write_encoder
from support.web import COMMIT, Host

TOKEN = "hf_tokenThatMayNotBeShown"
# It prints the exit statuses, and does not wait between retries.
DOWNLOAD = """
import json, sys, time
time.sleep = lambda seconds: None
from latteclip.cli.main import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
"""
ENCODE = """
import torch
from latteclip.clip import encode
from latteclip.clip import model as clips
clip = clips.load("hf-hub:me/both", None, torch.device("cpu"))
print(encode.encode_texts(clip, clip.tokenizer(["a photo of a red thing"])).norm().item())
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Hub(Host):
    """A hub, a machine with a cache of its own, and the processes that run there."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.cache = folder / "hf"
        self.note = folder / "0.json"

    def download(self, *models, offline=False, then=""):
        """`latteclip download-model` of each: exit statuses, what it said, what `then` printed."""
        notes = [self.folder / f"{number}.json" for number in range(len(models))]
        commands = [
            ["download-model", "--settings", json.dumps(model), "--output", str(note)]
            for model, note in zip(models, notes, strict=True)
        ]
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOAD + then, json.dumps(commands)],
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
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        first, *printed = done.stdout.splitlines()
        statuses = json.loads(first)
        assert [note.exists() for note in notes] == [status == 0 for status in statuses]
        return statuses, done.stderr, printed

    def refusals(self, *models):
        """The one sentence about each model, none of which can be fetched."""
        statuses, said, _ = self.download(*models)
        assert statuses == [2] * len(models), said
        sentences = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(sentences) == len(models) and "Traceback" not in said
        return sentences

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
    both = {"kind": "clip", "model": "hf-hub:me/both"}
    with gone.running():
        gone.serve_repo("me/both", {**files, "open_clip_pytorch_model.bin": b"a pickle"})
        gone.serve_repo("me/bert", contents(tmp_path / "both" / "text_tower"))
        statuses, said, _ = gone.download(both)
        assert statuses == [0] and str(gone.cache / "hub") in said, said
    note = gone.noted()
    commits = {"me/both": COMMIT, "me/bert": COMMIT}
    assert note == {
        "model": "hf-hub:me/both",
        "pretrained": None,
        "revision": None,
        "commits": commits,
    }
    assert "open_clip_pytorch_model.bin" not in gone.fetched()
    for offline in (True, False):  # the hub may be asked, and is silent
        gone.note.unlink()
        statuses, _, [norm] = gone.download(both, offline=offline, then=ENCODE)
        assert statuses == [0] and float(norm) == pytest.approx(1, abs=1e-5)
        assert gone.noted() == note


OTHER_FORMATS = {
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same weights",
    "modeling_llava.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
}


def test_only_the_files_of_a_captioner_that_engines_read_are_fetched(hub):
    hub.serve_repo("me/llava", {**contents(DEMO_LLAVA), **OTHER_FORMATS})
    statuses, said, _ = hub.download({"kind": "captioner", "model": "me/llava"})
    assert statuses == [0], said
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
    if refused:
        gone.refused = {"/me/": refused, "/api/models/me/": refused}
    with gone.running() if refused else contextlib.nullcontext():
        [sentence] = gone.refusals({"kind": kind, "model": model})
    assert model in sentence and "HF_TOKEN" in sentence and "HF_ENDPOINT" in sentence


def test_repos_without_safetensors_are_refused(hub, tmp_path):
    write_encoder(tmp_path / "encoder")
    folders = {
        "clip": DEMO_CLIP,
        "captioner": DEMO_LLAVA,
        "image_encoder": tmp_path / "encoder",
    }
    models = []
    for kind, folder in folders.items():
        files = contents(folder).items()
        left = {name: content for name, content in files if "safetensors" not in name}
        hub.serve_repo(f"me/{kind}", {**left, "pytorch_model.bin": b"x"})
        start = "" if kind == "captioner" else "hf-hub:"
        models.append({"kind": kind, "model": f"{start}me/{kind}"})
    assert all("safetensors" in sentence for sentence in hub.refusals(*models))
    assert "pytorch_model.bin" not in hub.fetched()
