"""A tuned model of the demo's CLIP."""

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.core.class_templates import ClassTemplates
from latteclip.deploy import predict

CLASSNAMES = [
    "red thing",
    "b, with a comma",
    "grey",
    "=striped",
    "dotted",
    "woven",
    "the sky",
]
WRITTEN = {"grey": "Grey"}
NAMES = [WRITTEN.get(name, name) for name in CLASSNAMES]  # as the dataset writes them
TEMPLATES = ["a photo of the {}.", "a {}", "the {}?"]
CPU = torch.device("cpu")


def write_model(clip, folder):
    """Write a tuned model whose classifier has a bias, and rows of many lengths."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(len(CLASSNAMES), clip.config["embed_dim"], generator=draw) / 9
    bias = torch.randn(len(CLASSNAMES), generator=draw) / 9
    words = ClassTemplates(TEMPLATES, {"grey": ["silver", "ash"]}, WRITTEN)
    clips.save(clip, Classifier.of(weights, bias), CLASSNAMES, words, folder)
    return folder


def predictions(model, paths, topk=10**6):
    """What we predict for images."""
    return predict.Predictor(model, device="cpu", threads=1)(paths, topk)
