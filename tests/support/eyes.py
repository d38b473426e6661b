"""A small network of timm with random weights, as a folder."""

import json

import timm
import torch
from safetensors.torch import save_file

ARCHITECTURE, SIDE, WIDTH = "test_vit", 32, 64


def write_eye(folder, *, seed=0, change=None, weights=None):
    """Write the folder and return its name as an image model.

    Args:
        change: keys of config.json.
        weights: a function from the weights to those that are written.
    """
    torch.manual_seed(seed)
    network = timm.create_model(ARCHITECTURE, num_classes=5, img_size=SIDE)
    state = network.state_dict()
    folder.mkdir(parents=True)
    save_file(weights(state) if weights else state, folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 5,
        "model_args": {"img_size": SIDE},
        "pretrained_cfg": {"input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "url": "of no use"},
    }
    (folder / "config.json").write_text(json.dumps(config | (change or {})))
    return f"local-dir:{folder}"


def network_of(folder):
    """The network with the weights of a folder, without its classifier."""
    from safetensors.torch import load_file

    network = timm.create_model(ARCHITECTURE, num_classes=5, img_size=SIDE)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.reset_classifier(0)
    return network.eval()
