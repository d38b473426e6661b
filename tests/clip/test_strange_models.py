"""Model folders of strangers: nothing of theirs is run, and nothing is fetched for them."""

import json
import os
import shutil
import socket

import huggingface_hub.constants
import open_clip
import pytest
import torch
from support.backbones import CPU, KINDS
from support.tiny import write_bert, write_pictures

from latteclip.cli import main
from latteclip.clip import clip_config
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.clip_config import TEXT_TOWER
from latteclip.clip.model_files import CLIP_CONFIG
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError

CLASSNAMES = ["a", "b"]
CODE = """
from pathlib import Path
from transformers import BertConfig, PreTrainedTokenizerFast
Path({marker!r}).touch()
class Own(PreTrainedTokenizerFast):
    pass
class OwnConfig(BertConfig):
    pass
"""
AUTO_MAP = {"AutoTokenizer": [None, "own.Own"], "AutoConfig": "own.OwnConfig"}


@pytest.fixture
def marker(tmp_path):
    """Is there once a stranger's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def plain(backbones, tmp_path):
    """Makes the folder of a tuned model of a kind."""

    def make(kind):
        clip = clips.load(backbones[kind], None, CPU)
        head = Classifier.of(torch.randn(2, clip.width))
        folder = tmp_path / "run" / "model"
        clips.save_finetuned(clip, head, CLASSNAMES, ClassTemplates(["a {}"]), folder)
        return folder

    return make


@pytest.fixture
def calls(monkeypatch):
    """The addresses that were asked for; none is answered."""
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def with_code(folder, marker):
    """Put code into a folder, and its name into every file that transformers reads."""
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {"model_type": "bert"}
        path.write_text(
            json.dumps({**values, "auto_map": AUTO_MAP, "tokenizer_class": "Own"})
        )


def trusting(folder, marker):
    with_code(folder, marker)
    options = {"trust_remote_code": True}
    edit(folder / CLIP_CONFIG, lambda c: text(c).update(tokenizer_kwargs=options))


def tower_with_code(folder, marker):
    with_code(folder / TEXT_TOWER, marker)


def tower_elsewhere(folder, marker):
    elsewhere = folder.parent / "elsewhere"
    write_bert(elsewhere)
    with_code(elsewhere, marker)
    shutil.rmtree(folder / TEXT_TOWER)
    edit(folder / CLIP_CONFIG, lambda c: text(c).update(hf_model_name=str(elsewhere)))


def timm_of_the_hub(folder, _):
    own = {"timm_model_name": "hf-hub:me/vit", "timm_model_pretrained": True}
    edit(folder / CLIP_CONFIG, lambda c: c["model_cfg"]["vision_cfg"].update(own))


def pickled(folder, _):
    (folder / clip_config.WEIGHTS).unlink()
    state = torch.nn.Linear(1, 1).state_dict()
    torch.save(state, folder / "open_clip_pytorch_model.bin")


def text(config):
    return config["model_cfg"]["text_cfg"]


def piped(folder, _):
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    os.mkfifo(folder / "tokenizer_config.json")


HOSTILE = {
    "a pipe": (piped, "tokenizer_config.json"),
    "tokenizer that is to be trusted": (trusting, "trust_remote_code"),
    "tokenizer with code": (with_code, "auto_map"),
    "tower elsewhere": (tower_elsewhere, "model folder"),
    "timm of the hub": (timm_of_the_hub, "timm"),
    "weights that are a pickle": (pickled, "open_clip_pytorch_model.bin"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_folder_is_refused_runs_nothing_and_asks_nobody(
    plain, marker, calls, capsys, monkeypatch, how
):
    spoil, wrong = HOSTILE[how]
    folder = plain("hf_mean")
    spoil(folder, marker)
    [picture] = write_pictures(folder.parent / "pictures", 1)
    # transformers asks whom it may trust
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    capsys.readouterr()  # what libraries wrote when the folder was made
    assert main.main(["predict", str(folder), picture]) == 2
    found = capsys.readouterr()
    assert wrong in found.err and "Traceback" not in found.err
    assert found.out == ""
    assert not marker.exists()
    assert calls == []


def test_of_a_text_tower_s_configuration_only_the_network_is_taken(plain, marker, calls):
    folder = plain("hf_mean")
    before = clips.load(f"local-dir:{folder}", None, CPU)
    tower_with_code(folder, marker)
    kernels = {
        "_attn_implementation": "me/kernels",
        "quantization_config": {"quant_method": "x"},
    }
    edit(folder / TEXT_TOWER / "config.json", lambda c: c.update(kernels))
    after = clips.load(f"local-dir:{folder}", None, CPU)
    assert after.text_tower == before.text_tower
    assert not marker.exists()
    assert calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_model_folder_needs_the_network(plain, kind, calls):
    folder = plain(kind)
    clip = clips.load(f"local-dir:{folder}", None, CPU)
    clip.tokenizer(["a thing"])
    assert calls == []


@pytest.mark.parametrize(
    ("section", "values", "wrong"),
    [
        ("vision_cfg", {"weights_url": "x"}, "vision_cfg.*weights_url"),
        ("vision_cfg", {"weights\nurl": "x"}, "vision_cfg.*weights url"),
        ("vision_cfg", {"layers": 10**9}, "layers"),
        ("vision_cfg", {"width": 2**20}, "its network"),
        ("text_cfg", {"norm_kwargs": {"device": "cuda"}}, "norm_kwargs.device"),
        ("text_cfg", {"tokenizer_kwargs": {"reduction_mask": "syntax"}}, "reduction_mask"),
        ("text_cfg", {"mlp_ratio": float("nan")}, "mlp_ratio"),
        ("preprocess_cfg", {"std": [0, 0, 0]}, "preprocess_cfg.std"),
        ("preprocess_cfg", {"mean": [1e300] * 3}, "mean"),
    ],
)
def test_what_a_configuration_may_not_hold_is_named(plain, section, values, wrong):
    folder = plain("custom_text")
    edit(folder / CLIP_CONFIG, lambda c: (c | c["model_cfg"])[section].update(values))
    with pytest.raises(UserError, match=wrong) as refused:
        clips.load(f"local-dir:{folder}", None, CPU)
    assert "\n" not in str(refused.value)


def test_every_configuration_that_open_clip_lists_may_come_back_from_a_folder():
    for name in open_clip.list_models():
        clip_config.check({"model_cfg": open_clip.get_model_config(name)})
