import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.tiny import DEMO_CLIP, tiny_clip, write_index, write_pictures

from latteclip.clip import classifier
from latteclip.clip.encode import class_embeddings
from latteclip.config.keys import ClassTextsSection, ClipSection
from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.labels.pseudo_label_images import ZeroShotSettings, pseudo_label_images

CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
SETTINGS = ZeroShotSettings(
    clip=ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None),
    class_texts=ClassTextsSection(template="a photo of a {} texture."),
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Pictures, and the pseudo-labels that the command wrote for them."""
    folder = tmp_path_factory.mktemp("zero_shot")
    files = write_pictures(folder / "pictures", 7)
    splits = ["train", "test", "val", "train", "train", "test", "train"]
    index = write_index(folder / "images.parquet", files, splits, [None] * 7, CLASSNAMES)
    outputs = [str(folder / name) for name in ("out.parquet", "out.safetensors")]
    pseudo_label_images(index, SETTINGS, *outputs, device="cpu", threads=1)
    table = tables.read(folder / "out.parquet", tables.PSEUDO_LABELS)
    metadata = tables.read_metadata(folder / "out.parquet", ClassesMetadata)
    return (
        files,
        splits,
        table.to_pydict(),
        metadata,
        classifier.load_classifier(outputs[1]),
    )


def unit(vector):
    return vector / vector.norm()


@pytest.fixture(scope="module")
@torch.no_grad()
def direct(labelled, demo_clip):
    """Features [N, D], cosines [N, C] and W0 [C, D], one image and one text at a time."""
    model, tokenizer = demo_clip.model, demo_clip.tokenizer
    images = [
        unit(model.encode_image(demo_clip.preprocess(Image.open(file))[None])[0])
        for file in labelled[0]
    ]
    texts = [
        unit(model.encode_text(tokenizer([f"a photo of a {name} texture."]))[0])
        for name in CLASSNAMES
    ]
    return images, [[(v @ u).item() for u in texts] for v in images], texts


def test_the_table_is_that_of_the_direct_computation(labelled, direct, demo_clip):
    files, splits, columns = labelled[:3]
    assert columns["image_id"] == [Path(file).name for file in files]
    assert columns["split"] == splits
    assert columns["pseudo_label"] == [scores.index(max(scores)) for scores in direct[1]]
    features = torch.tensor(columns["image_features"])
    torch.testing.assert_close(features, torch.stack(direct[0]), rtol=1e-4, atol=1e-5)
    scale = demo_clip.model.logit_scale.exp().item()
    for i, scores in enumerate(direct[1]):
        powers = [math.exp(scale * score) for score in scores]
        assert columns["confidence"][i] == pytest.approx(
            max(powers) / sum(powers), abs=1e-4
        )
        best = columns["topk_labels"][i]
        assert best == sorted(range(6), key=lambda c, s=scores: -s[c])[:5]
        assert columns["topk_scores"][i] == pytest.approx(
            [scores[c] for c in best], abs=1e-5
        )


def test_class_embeddings_have_all_that_scores_need(labelled, direct, demo_clip):
    *_, metadata, (head, described) = labelled
    torch.testing.assert_close(head.weights, torch.stack(direct[2]), rtol=1e-4, atol=1e-5)
    names = {"classnames": CLASSNAMES, "model": SETTINGS.clip.model, "pretrained": None}
    assert metadata.classnames == CLASSNAMES
    scale = pytest.approx(math.exp(demo_clip.model.logit_scale.item()))
    assert described == {
        **names,
        "template": SETTINGS.class_texts.template,
        "logit_scale": scale,
    }


def text_feature(clip, text):
    return unit(clip.model.encode_text(clip.tokenizer([text]))[0])


ENSEMBLE = ["a photo of a {}.", "the {}", "{} seen from above", "a small {} thing"]
SYNONYMS = {"blue sky": ["heaven", "the blue"], "x": ["cross"]}


@pytest.mark.parametrize(
    "templates", [ENSEMBLE, ENSEMBLE[0]], ids=["ensemble", "one template"]
)
@torch.no_grad()
def test_a_class_with_synonyms_is_the_mean_over_all_its_names_and_templates(templates):
    clip = tiny_clip()
    found = class_embeddings(clip, templates, ["red", "blue sky", "x"], SYNONYMS)
    for row, name in zip(found, ["red", "blue sky", "x"], strict=True):
        features = [
            text_feature(clip, template.replace("{}", one))
            for template in ([templates] if isinstance(templates, str) else templates)
            for one in [name, *SYNONYMS.get(name, [])]
        ]
        torch.testing.assert_close(row, unit(sum(features)), rtol=1e-5, atol=1e-6)
