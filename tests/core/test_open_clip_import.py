"""open_clip without what most models do without: each check in an interpreter of its own."""

import json
import subprocess
import sys

from support.tiny import DEMO_CLIP

# Modules that open_clip's own import runs, and that a plain ViT never asks for.
HEAVY = ["torch._dynamo", "transformers", "timm.models", "torchvision.models.resnet"]
ENCODE = f"""
import torch
from latteclip.clip import encode, model as clips
clip = clips.load("local-dir:{DEMO_CLIP}", None, torch.device("cpu"))
encode.encode_images(clip, torch.zeros(1, 3, *clip.model.visual.image_size))
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
    assert loaded(ENCODE) == []


def test_what_was_put_off_is_all_there_when_it_is_asked_for():
    code = """
from latteclip.core.open_clip_import import open_clip
import torch, torchvision, timm, transformers
torchvision.models.resnet18, torchvision.datasets.CIFAR10, torchvision.io.read_image
timm.create_model, transformers.AutoConfig
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9]])
print(json.dumps(torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()))
"""
    assert answer(code) == [1]
