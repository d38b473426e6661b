"""CLIPs that people use: zero-shot labels, a step of fine-tuning, an export and its predictions."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.architectures import ARCHITECTURES, write_architecture
from support.tiny import FINETUNE, TEMPLATE, write_index, write_pictures

from latteclip.clip import finetuned
from latteclip.clip import model as clips
from latteclip.deploy.export import export
from latteclip.deploy.predict import Classifier
from latteclip.labels.pseudo_label_images import ZeroShotSettings, pseudo_label_images
from latteclip.train.data import TrainingFiles
from latteclip.train.finetune import finetune
from latteclip.train.settings import Finetune, FinetuneSettings

CLASSNAMES = ["red sky", "woven", "dotted thing"]
N = 4


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    return request.param, write_architecture(request.param, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def run(architecture, tmp_path_factory):
    """The folder in which a model was given zero-shot labels and trained for one step on them."""
    _, name = architecture
    folder = tmp_path_factory.mktemp("run")
    pictures = write_pictures(folder / "pictures", N)
    index = write_index(folder / "images.parquet", pictures, ["train"] * N, [None] * N, CLASSNAMES)
    zero_shot = ZeroShotSettings(name, None, TEMPLATE, batch_size=3, topk=2)
    files = [str(folder / name) for name in ("labels.parquet", "embeddings.safetensors")]
    pseudo_label_images(index, zero_shot, *files, device="cpu", threads=1)
    settings = FinetuneSettings(
        model=name,
        pretrained=None,
        template=TEMPLATE,
        objective="flyp",
        finetune=Finetune(**FINETUNE | {"epochs": 1, "batch_size": N}),
    )
    outputs = [str(folder / name) for name in ("model", "history.parquet", "checkpoints")]
    finetune(
        TrainingFiles(index, files[0]),
        *(settings, *outputs),
        seed=0,
        device="cpu",
        threads=1,
    )
    return folder


def test_one_step_moves_both_towers(architecture, run):
    assert pq.read_table(run / "history.parquet")["loss"].to_pylist()[0] > 0
    start = Path(architecture[1].removeprefix("local-dir:"))
    before, after = (
        load_file(folder / "open_clip_model.safetensors") for folder in (start, run / "model")
    )
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.startswith("visual.") for key in moved} == {True, False}
    norms = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert (architecture[0] == "MobileCLIP-S1") == bool(norms)
    assert not moved & set(norms)


def test_predictions_of_the_export_are_those_of_the_stock_model(architecture, run, tmp_path):
    export(str(run), str(tmp_path / "exported"), "open_clip")
    pictures = sorted(map(str, (run / "pictures").iterdir()))
    found = Classifier(str(tmp_path / "exported"), device="cpu", threads=1)(pictures, topk=3)
    assert [prediction.path for prediction in found] == pictures
    opened = finetuned.load(run, torch.device("cpu"))
    images = torch.stack([opened.clip.preprocess(Image.open(path)) for path in pictures])
    with torch.no_grad():
        features = opened.clip.model.encode_image(images, normalize=True)
    scores = opened.classifier.scores(features).sort(dim=1, descending=True).values
    assert scores.std() > 0
    torch.testing.assert_close(
        torch.tensor([prediction.topk_scores for prediction in found]), scores, rtol=1e-4, atol=1e-5
    )


def test_siglip2_has_the_tokenizer_of_its_own_class(tmp_path):
    clip = clips.load(
        write_architecture("ViT-B-16-SigLIP2-256", tmp_path), None, torch.device("cpu")
    )
    assert type(clip.tokenizer.tokenizer).__name__ == "GemmaTokenizer"
    tokens = clip.tokenizer(["Red SKY!", "red sky", "woven"])
    assert tokens.shape == (3, 64)
    assert torch.equal(tokens[0], tokens[1])  # "canonicalize": no case and no punctuation
    assert not torch.equal(tokens[0], tokens[2])
