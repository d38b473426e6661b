"""Models are fetched from a hub on 127.0.0.1 and then loaded with the hub gone."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.backbones import CPU, TEXTS
from support.tiny import DEMO_CLIP, DEMO_LLAVA, write_backbone, write_encoder
from support.web import COMMIT, TOKEN, Host

from latteclip.cli import main
from latteclip.clip import encode
from latteclip.clip import model as clips


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Hub(Host):
    """A hub, and a machine with a cache of its own."""

    def __init__(self, folder, capsys):
        super().__init__()
        self.cache, self.note = folder / "hf" / "hub", folder / "note.json"
        self._capsys = capsys

    def download(self, offline=False, **settings):
        """`latteclip download-model`; its exit status and what it said."""
        words = ["download-model", "--settings", json.dumps(settings)]
        with self.as_hub(self.cache, offline):
            status = main.main([*words, "--output", str(self.note)])
        printed = "".join(self._capsys.readouterr())
        assert TOKEN not in printed
        assert self.note.exists() == (status == 0)
        return status, printed

    def refusal(self, **settings):
        """The one sentence about a model that cannot be fetched."""
        status, printed = self.download(**settings)
        assert status == 2 and "Traceback" not in printed, printed
        [sentence] = [line for line in printed.splitlines() if line.startswith("error: ")]
        return sentence

    def noted(self):
        return json.loads(self.note.read_text())

    def fetched(self):
        """Names of the files of repos that were asked for."""
        return {Path(path).name for path, _ in self.requests if "/resolve/" in path}


@pytest.fixture
def gone(tmp_path, capsys):
    """A hub that no longer answers; its method `running` makes it answer for a while."""
    with Hub(tmp_path, capsys).running() as hub:
        return hub


@pytest.fixture
def hub(gone):
    with gone.running():
        yield gone


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
        status, printed = gone.download(**both)
        assert status == 0 and str(gone.cache) in printed, printed
    note = gone.noted()
    commits = {"me/both": COMMIT, "me/bert": COMMIT}
    assert note == {
        "model": "hf-hub:me/both",
        "pretrained": None,
        "revision": None,
        "commits": commits,
    }
    assert "open_clip_pytorch_model.bin" not in gone.fetched()
    with gone.as_hub(gone.cache, offline=True):
        clip = clips.load("hf-hub:me/both", None, CPU)
        norms = encode.encode_texts(clip, clip.tokenizer(TEXTS)).norm(dim=1)
    assert norms.tolist() == pytest.approx([1] * len(TEXTS), abs=1e-5)
    for offline in (True, False):  # the hub may be asked, and is silent
        gone.note.unlink()
        assert gone.download(offline, **both)[0] == 0
        assert gone.noted() == note


OTHER_FORMATS = {
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same weights",
    "modeling_llava.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
}


def test_only_the_files_of_a_captioner_that_engines_read_are_fetched(hub):
    hub.serve_repo("me/llava", {**contents(DEMO_LLAVA), **OTHER_FORMATS})
    status, printed = hub.download(kind="captioner", model="me/llava")
    assert status == 0, printed
    assert hub.noted()["commits"] == {"me/llava": COMMIT}
    assert contents(DEMO_LLAVA).keys() <= hub.fetched()
    assert not hub.fetched() & (OTHER_FORMATS.keys() - {"onnx/config.json"})


@pytest.mark.parametrize(
    ("kind", "model", "refused"),
    [("clip", "hf-hub:me/clip", (403, "GatedRepo")), ("captioner", "me/llava", None)],
)
def test_a_repo_that_cannot_be_reached_is_one_sentence(gone, kind, model, refused):
    if refused:
        gone.refused = {"/me/": refused, "/api/models/me/": refused}
    with gone.running() if refused else nullcontext():
        sentence = gone.refusal(kind=kind, model=model)
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
    assert "safetensors" in hub.refusal(kind=kind, model=model)
    assert "pytorch_model.bin" not in hub.fetched()
