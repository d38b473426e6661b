import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny import (
    DEMO_CLIP,
    tiny_clip,
    write_index,
    write_pictures,
    write_pseudo_labels,
)

from latteclip.clip.classifier import load_classifier
from latteclip.clip.encode import class_embeddings
from latteclip.clip.encode_images import encode_images
from latteclip.clip.features import read_features
from latteclip.clip.zero_shot import ZeroShotSettings
from latteclip.config.keys import ClipSection
from latteclip.core import tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.tables import ClassesMetadata
from latteclip.labels import pseudo_label_images as stage

CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
SETTINGS = ZeroShotSettings(
    clip=ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None),
    template="a photo of a {} texture.",
)
SPLITS = ["train", "test", "val", "train", "train", "test", "train"]


def text_feature(clip, text):
    return F.normalize(clip.model.encode_text(clip.tokenizer([text]))[0], dim=0)


@torch.no_grad()
def test_the_files_are_those_of_the_direct_computation(tmp_path, demo_clip):
    """One image and one text at a time."""
    files = write_pictures(tmp_path / "pictures", 7)
    index = tmp_path / "images.parquet"
    write_index(index, files, SPLITS, [None] * 7, CLASSNAMES)
    features, store = str(tmp_path / "features.parquet"), str(tmp_path / "store")
    outputs = [str(tmp_path / name) for name in ("out.parquet", "out.safetensors")]
    on_cpu = {"device": "cpu", "threads": 1}
    encode_images(str(index), "", SETTINGS.clip, store, features, **on_cpu)
    stage.pseudo_label_images(str(index), features, SETTINGS, *outputs, **on_cpu)
    model = demo_clip.model
    pictures = [demo_clip.preprocess(Image.open(file))[None] for file in files]
    images = torch.stack([F.normalize(model.encode_image(x)[0], dim=0) for x in pictures])
    texts = torch.stack(
        [text_feature(demo_clip, f"a photo of a {name} texture.") for name in CLASSNAMES]
    )
    columns = tables.read(outputs[0]).to_pydict()
    assert columns["image_id"] == [Path(file).name for file in files]
    features = torch.tensor(columns["image_features"])
    torch.testing.assert_close(features, images, rtol=1e-4, atol=1e-5)
    scale = model.logit_scale.exp().item()
    labels = (images @ texts.T).topk(5, dim=1).indices
    assert columns["pseudo_label"] == labels[:, 0].tolist()
    assert columns["topk_labels"] == labels.tolist()
    confidence = (scale * images @ texts.T).softmax(dim=1).amax(dim=1)
    assert columns["confidence"] == pytest.approx(confidence.tolist(), abs=1e-4)
    assert tables.read_metadata(outputs[0], ClassesMetadata).classnames == CLASSNAMES
    head, described = load_classifier(outputs[1])
    torch.testing.assert_close(head.weights, texts, rtol=1e-4, atol=1e-5)
    assert described == {
        "classnames": CLASSNAMES,
        "model": SETTINGS.clip.model,
        "pretrained": None,
        "class_templates": vars(ClassTemplates([SETTINGS.template])),
        "logit_scale": pytest.approx(math.exp(model.logit_scale.item())),
    }


ENSEMBLE = ["a photo of a {}.", "the {}", "{} seen from above", "a small {} thing"]
SYNONYMS = {"blue sky": ["heaven", "the blue"], "x": ["cross"]}


@torch.no_grad()
def test_a_class_with_synonyms_is_the_mean_over_all_its_names_and_templates():
    clip = tiny_clip()
    words = ClassTemplates.of(ENSEMBLE, SYNONYMS)
    found = class_embeddings(clip, words, ["red", "blue sky", "x"])
    for row, name in zip(found, ["red", "blue sky", "x"], strict=True):
        features = [
            text_feature(clip, template.replace("{}", one))
            for template in ENSEMBLE
            for one in [name, *SYNONYMS.get(name, [])]
        ]
        wanted = F.normalize(sum(features), dim=0)
        torch.testing.assert_close(row, wanted, rtol=1e-5, atol=1e-6)


# --- in pieces, for datasets of a million images -------------------------------------------------


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("wanted", [[20, 3, 4, 11, 0, 7, 7], []])
def test_features_are_read_in_pieces_and_in_the_order_asked_for(
    tmp_path, monkeypatch, rows, wanted
):
    images = torch.randn(23, 5, generator=torch.Generator().manual_seed(1))
    names = [f"{number}.png" for number in range(23)]
    path = write_pseudo_labels(tmp_path / "t.parquet", names, [0] * 23, features=images)
    monkeypatch.setattr("latteclip.clip.features.ROWS", rows)
    ids = pa.chunked_array([[f"{i}.png" for i in wanted]], pa.string())
    assert torch.equal(read_features(path, ids)[:], images[wanted])
