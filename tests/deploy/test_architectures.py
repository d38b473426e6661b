"""CLIPs that people use: zero-shot labels, a step of fine-tuning, an export and its predictions."""

import json
import zlib
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.backbones import predictions
from support.tiny import TEMPLATE, write_index, write_pictures
from support.trainings import settings
from timm.models import register_model

from latteclip.clip.model import load_finetuned
from latteclip.config.keys import ClipSection
from latteclip.core.holdout import NO_FOLD
from latteclip.deploy.export import export
from latteclip.labels.pseudo_label_images import ZeroShotSettings, pseudo_label_images
from latteclip.train.data import TrainingFiles
from latteclip.train.finetune import finetune

CLASSNAMES = ["red sky", "woven", "dotted thing"]
N = 4


SIDE = 64
TEXT = {"width": 32, "heads": 2, "layers": 2}
SMALL_VIT = {"img_size": SIDE, "depth": 2, "embed_dim": 48, "num_heads": 3}


def _smaller(name, **options):
    """timm's model of that name with other options; the name of the result."""

    def make(pretrained=False, **kwargs):
        return timm.create_model(name, pretrained=False, **{**kwargs, **options})

    make.__name__ = f"{name}_smaller"
    return register_model(make).__name__


# open_clip's name: (width of its features here, changes of its image tower).
ARCHITECTURES = {
    "ViT-B-16-SigLIP2-256": (48, ("vit_base_patch16_siglip_256", SMALL_VIT)),
    "MobileCLIP-S1": (
        48,
        ("fastvit_mci1", {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}),
    ),
    "ViT-B-32-256": (40, {"layers": 2, "width": 48, "head_width": 16}),
    "EVA02-B-16": (48, ("eva02_base_patch16_clip_224", SMALL_VIT)),
}


def described(name, folder):
    """open_clip's model_cfg of a name, made smaller; a tokenizer of the hub becomes one of ours."""
    config = open_clip.get_model_config(name)
    width, tower = ARCHITECTURES[name]
    config["embed_dim"] = width
    vision, text = {**config["vision_cfg"]}, {**config["text_cfg"], **TEXT}
    if isinstance(tower, dict):
        vision |= tower
    else:
        assert vision["timm_model_name"] == tower[0]
        vision |= {"timm_model_name": _smaller(tower[0], **tower[1]), "image_size": SIDE}
    if "hf_tokenizer_name" in text:
        text |= {
            "hf_tokenizer_name": str(folder),
            "vocab_size": write_gemma_tokenizer(folder),
        }
    return {**config, "vision_cfg": vision, "text_cfg": text}


def write_gemma_tokenizer(folder):
    """A tokenizer of lower-case letters, of the class of SigLIP 2's; the size of its vocabulary."""
    words = [
        *["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"],
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    tokenizer = transformers.GemmaTokenizer(vocab={word: n for n, word in enumerate(words)})
    tokenizer.padding_side = "right"  # as SigLIP 2's says
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_architecture(name, folder):
    """A random model as a folder; the name by which it is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    config = described(name, folder)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3} if "SigLIP" in name else {}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    torch.manual_seed(zlib.crc32(name.encode()))
    model = open_clip.create_model(f"local-dir:{folder}")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    return request.param, write_architecture(request.param, tmp_path_factory.mktemp("clip"))


def test_it_gives_labels_trains_a_step_and_predicts_as_the_stock_model(
    architecture, tmp_path
):
    name, model = architecture
    pictures = write_pictures(tmp_path / "pictures", N)
    rows = pictures, ["train"] * N, [None] * N, CLASSNAMES
    index = write_index(tmp_path / "images.parquet", *rows)
    clip = ClipSection(model=model, pretrained=None)
    zero_shot = ZeroShotSettings(clip=clip, template=TEMPLATE)
    labels = str(tmp_path / "labels.parquet")
    embeddings = str(tmp_path / "embeddings.safetensors")
    pseudo_label_images(index, zero_shot, labels, embeddings, device="cpu", threads=1)
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
