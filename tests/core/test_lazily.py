"""open_clip without what most models do without: each check in an interpreter of its own."""

import ast
import json
import subprocess
import sys

import pytest
from support.tiny import BACKBONES, DEMO_CLIP, ROOT

from latteclip.core.lazily import PUT_OFF

# Modules that open_clip's own import runs, and that a plain ViT never asks for.
HEAVY = ["torch._dynamo", "transformers", "timm.models", "torchvision.models.resnet"]
FEATURES = """
import torch
from latteclip.clip import encode, model as clips
def features(name):
    clip = clips.load(name, None, torch.device("cpu"))
    side = clip.model.visual.image_size
    side = side if isinstance(side, tuple) else (side, side)
    with torch.no_grad():
        pixels = torch.linspace(-1, 1, 3 * side[0] * side[1]).view(1, 3, *side)
        return clip, encode.encode_images(clip, pixels)
"""


def answer(code):
    """What a new interpreter says after `code`, as JSON."""
    found = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def loaded(code):
    return answer(f"{code}\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))")


def test_a_plain_image_tower_is_loaded_and_encodes_without_what_open_clip_imports():
    assert loaded("import open_clip") == HEAVY  # else there is nothing left to save
    assert loaded(f"{FEATURES}features('local-dir:{DEMO_CLIP}')") == []


OTHERS = ("hf_mean", "siglip", "convnext")  # towers of other libraries


def features_of(models, before=""):
    """Features by each of some models, in an interpreter that has built a plain one."""
    code = f"""{before}{FEATURES}
features('local-dir:{DEMO_CLIP}')
found = []
for model in {models!r}:
    clip, images = features(model)
    texts = encode.encode_texts(clip, clip.tokenizer(["a photo of the sky", "red"]))
    found.append([images.tolist(), texts.tolist()])
print(json.dumps(found))
"""
    return answer(code)


@pytest.fixture(scope="module")
def features_with_everything(backbones):
    """Those by models of OTHERS after a plain import of open_clip."""
    models = [backbones[kind] for kind in OTHERS]
    return dict(zip(OTHERS, features_of(models, "import open_clip"), strict=True))


@pytest.mark.parametrize("kind", OTHERS)
def test_a_tower_of_another_library_is_built_after_a_plain_one(
    kind, backbones, features_with_everything
):
    assert features_of([backbones[kind]]) == [features_with_everything[kind]]
    assert "timm_model_name" in BACKBONES[kind][0]["vision_cfg"] or kind.startswith("hf")


def test_what_was_put_off_is_all_there_when_it_is_asked_for():
    code = f"""
from latteclip.core.lazily import open_clip
import importlib, torch, torchvision, timm
names = {{name: dir(importlib.import_module(name)) for name in {sorted(PUT_OFF)}}}
early = {{name: len(found) for name, found in names.items()}}
torchvision.ops.nms, torchvision.models.resnet18, torchvision.datasets.CIFAR10
torchvision.io.read_image, timm.create_model
late = {{name: len(dir(sys.modules[name])) for name in names}}
assert all(late[name] > early[name] for name in names), (early, late)
import transformers
assert transformers.AutoConfig
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9]])
print(json.dumps(torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()))
"""
    assert answer(code) == [1]


def test_nothing_else_is_left_in_the_way_of_imports():
    code = """
before = list(sys.meta_path)
import latteclip.core.lazily
print(json.dumps([sys.meta_path == before, "transformers" in sys.modules]))
"""
    assert answer(code) == [True, False]


def test_the_package_imports_open_clip_from_here_alone():
    """A plain import of it, before ours, would run everything."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "latteclip").rglob("*.py")
        if path.parent.name != "demo" and path.stem != "lazily"  # the demo trains its own models
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if str(name).split(".")[0] == "open_clip"
    ]
    assert wrong == []
