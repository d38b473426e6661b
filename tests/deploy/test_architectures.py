"""CLIPs that people use: zero-shot labels, a step of fine-tuning, an export and its predictions."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support.backbones import predictions
from support.tiny import (
    BACKBONES,
    OWN,
    TEMPLATE,
    write_backbone,
    write_index,
    write_pictures,
)
from support.trainings import settings
from timm.models import register_model

from latteclip.clip.encode_images import encode_images
from latteclip.clip.model import load_finetuned
from latteclip.clip.zero_shot import ZeroShotSettings
from latteclip.config.keys import ClipSection
from latteclip.core.holdout import NO_FOLD
from latteclip.deploy.export_model import export
from latteclip.labels.pseudo_label_images import pseudo_label_images
from latteclip.train.data import TrainingFiles
from latteclip.train.finetune import finetune

CLASSNAMES = ["red sky", "woven", "dotted thing"]
N = 4


SIDE = 64
SMALL_VIT = {"img_size": SIDE, "depth": 2, "embed_dim": 48, "num_heads": 3}
# open_clip's name: timm's name of its image tower, and what makes that smaller.
ARCHITECTURES = {
    "ViT-B-16-SigLIP2-256": ("vit_base_patch16_siglip_256", SMALL_VIT),
    "MobileCLIP-S1": (
        "fastvit_mci1",
        {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)},
    ),
    "EVA02-B-16": ("eva02_base_patch16_clip_224", SMALL_VIT),
}


def _smaller(name, **options):
    """timm's model of that name with other options; the name of the result."""

    def make(pretrained=False, **kwargs):
        return timm.create_model(name, pretrained=False, **{**kwargs, **options})

    make.__name__ = f"{name}_smaller"
    return register_model(make).__name__


def small(name):
    """open_clip's model_cfg and preprocess_cfg of a name, made smaller."""
    config = open_clip.get_model_config(name)
    tower, options = ARCHITECTURES[name]
    assert config["vision_cfg"]["timm_model_name"] == tower
    vision = {"timm_model_name": _smaller(tower, **options), "image_size": SIDE}
    text = {"width": 32, "heads": 2, "layers": 2}
    if "hf_tokenizer_name" in config["text_cfg"]:
        text |= OWN
    config |= {
        "embed_dim": 48,
        "vision_cfg": config["vision_cfg"] | vision,
        "text_cfg": config["text_cfg"] | text,
    }
    return config, {"mean": [0.5] * 3, "std": [0.5] * 3} if "SigLIP" in name else {}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_gives_labels_trains_a_step_and_predicts_as_the_stock_model(
    name, tmp_path, monkeypatch
):
    monkeypatch.setitem(BACKBONES, name, small(name))
    model = write_backbone(name, tmp_path / "clip")
    pictures = write_pictures(tmp_path / "pictures", N)
    rows = pictures, ["train"] * N, [None] * N, CLASSNAMES
    index = write_index(tmp_path / "images.parquet", *rows)
    clip = ClipSection(model=model, pretrained=None)
    zero_shot = ZeroShotSettings(clip=clip, template=TEMPLATE)
    labels = str(tmp_path / "labels.parquet")
    embeddings = str(tmp_path / "embeddings.safetensors")
    features, store = str(tmp_path / "features.parquet"), str(tmp_path / "store")
    on_cpu = {"device": "cpu", "threads": 1}
    encode_images(index, "", clip, store, features, str(tmp_path / "pretrained"), **on_cpu)
    pseudo_label_images(index, features, zero_shot, labels, embeddings, **on_cpu)
    training = settings("flyp", model, template=TEMPLATE, epochs=1, batch_size=N)
    outputs = [str(tmp_path / each) for each in ("model", "history.parquet", "checkpoints")]
    files = TrainingFiles(index, labels)
    on_cpu = {"checkpoint_minutes": 0, "device": "cpu", "threads": 1}
    finetune(files, training, NO_FOLD, *outputs, seed=0, **on_cpu)
    assert_both_towers_moved(
        Path(model.removeprefix("local-dir:")), tmp_path / "model", name
    )
    export(str(tmp_path), str(tmp_path / "exported"), "open_clip")
    opened = load_finetuned(tmp_path, torch.device("cpu"))
    images = torch.stack([opened.clip.preprocess(Image.open(path)) for path in pictures])
    with torch.no_grad():
        features = opened.clip.model.encode_image(images, normalize=True)
    scores = opened.classifier.scores(features).sort(dim=1, descending=True).values
    found = [one.topk_scores for one in predictions(tmp_path / "exported", pictures)]
    assert scores.std() > 0
    torch.testing.assert_close(torch.tensor(found), scores, rtol=1e-4, atol=1e-5)


def assert_both_towers_moved(start, trained, name):
    """And no statistic of a batch norm."""
    weights = "open_clip_model.safetensors"
    before, after = load_file(start / weights), load_file(trained / weights)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.startswith("visual.") for key in moved} == {True, False}
    norms = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert (name == "MobileCLIP-S1") == bool(norms)
    assert not moved & set(norms)
