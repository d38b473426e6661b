"""LatteCLIP as a workflow: adapt CLIP to unlabelled images with synthetic texts."""

from importlib import import_module
from typing import Any

__version__ = "0.3.0"
# What notebooks import from here, by its module. A module is loaded when it is asked for, because
# some need torch.
PUBLIC = {
    "LabelModel": "latteclip.labels.label_model",
    "Predictor": "latteclip.deploy.predictor",
    "read_labels": "latteclip.deploy.label_table",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
