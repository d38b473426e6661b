import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny import DEMO_CLIP, tiny_clip, write_index, write_pictures

from latteclip.clip import classifier, encode
from latteclip.core import tables
from latteclip.labels.pseudo_label_images import (
    ZeroShotSettings,
    class_embeddings,
    pseudo_label_images,
)

CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
SETTINGS = ZeroShotSettings(
    model=f"local-dir:{DEMO_CLIP}",
    pretrained=None,
    template="a photo of a {} texture.",
    batch_size=3,
    topk=5,
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
    table, metadata = tables.read(folder / "out.parquet", tables.PSEUDO_LABELS)
    return files, splits, table.to_pydict(), metadata, classifier.load_classifier(outputs[1])


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


def test_every_image_of_every_split_is_labelled_in_order(labelled):
    files, splits, columns = labelled[:3]
    assert columns["image_id"] == [Path(file).name for file in files]
    assert columns["split"] == splits


def test_pseudo_labels_are_the_best_class_of_the_direct_computation(labelled, direct):
    wanted = [scores.index(max(scores)) for scores in direct[1]]
    assert labelled[2]["pseudo_label"] == wanted


def test_best_classes_and_their_cosines_are_kept_best_first(labelled, direct):
    columns = labelled[2]
    for labels, best, scores in zip(
        columns["topk_labels"], columns["topk_scores"], direct[1], strict=True
    ):
        assert labels == sorted(range(6), key=lambda c, s=scores: -s[c])[:5]
        assert best == pytest.approx([scores[label] for label in labels], abs=1e-5)


def test_confidence_is_the_softmax_of_the_scaled_scores_at_the_label(labelled, direct, demo_clip):
    scale = demo_clip.model.logit_scale.exp().item()
    wanted = []
    for scores in direct[1]:
        powers = [math.exp(scale * score) for score in scores]
        wanted.append(max(powers) / sum(powers))
    assert labelled[2]["confidence"] == pytest.approx(wanted, abs=1e-4)


def test_image_features_are_kept(labelled, direct):
    for found, wanted in zip(labelled[2]["image_features"], direct[0], strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=1e-5)


def test_metadata_say_what_labelled(labelled):
    assert labelled[3] == {
        "classnames": CLASSNAMES,
        "model": SETTINGS.model,
        "pretrained": None,
        "template": SETTINGS.template,
    }


def test_class_embeddings_are_kept_with_all_that_scores_need(labelled, direct, demo_clip):
    head, described = labelled[4]
    embeddings = head.weights
    torch.testing.assert_close(embeddings, torch.stack(direct[2]), rtol=1e-4, atol=1e-5)
    assert described == {
        **labelled[3],
        "logit_scale": pytest.approx(math.exp(demo_clip.model.logit_scale.item())),
    }


def test_class_embeddings_are_the_features_of_the_filled_template():
    clip = tiny_clip()
    embeddings = class_embeddings(clip, "a {} thing", ["red", "blue sky", "x"])
    for row, text in zip(embeddings, ["a red thing", "a blue sky thing", "a x thing"], strict=True):
        torch.testing.assert_close(
            row, F.normalize(clip.model.encode_text(clip.tokenizer([text])), dim=-1)[0]
        )
    assert not embeddings.requires_grad


def text_feature(clip, text):
    return unit(clip.model.encode_text(clip.tokenizer([text]))[0])


ENSEMBLE = ["a photo of a {}.", "the {}", "{} seen from above", "a small {} thing"]
SYNONYMS = {"blue sky": ["heaven", "the blue"], "x": ["cross"]}


@torch.no_grad()
def test_an_ensemble_is_the_normalised_mean_of_normalised_features():
    clip = tiny_clip()
    found = class_embeddings(clip, ENSEMBLE, ["red", "blue sky", "x"])
    for row, name in zip(found, ["red", "blue sky", "x"], strict=True):
        features = [text_feature(clip, template.replace("{}", name)) for template in ENSEMBLE]
        torch.testing.assert_close(row, unit(sum(features) / 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("templates", [ENSEMBLE, ENSEMBLE[0]], ids=["ensemble", "one template"])
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


@pytest.mark.parametrize("template", ["a {} thing", ["a {} thing"]], ids=str)
def test_one_template_is_encoded_as_it_always_was(template):
    clip = tiny_clip()
    names = ["red", "blue sky", "x"]
    with torch.no_grad():
        wanted = encode.encode_texts(clip, clip.tokenizer([f"a {name} thing" for name in names]))
    assert torch.equal(class_embeddings(clip, template, names, {}), wanted)


def test_the_files_say_how_classes_are_put_into_words(tmp_path):
    files = write_pictures(tmp_path / "pictures", 2)
    written = {CLASSNAMES[0]: CLASSNAMES[0].title()}
    index = write_index(tmp_path / "i", files, ["train", "test"], [None] * 2, CLASSNAMES, written)
    outputs = [str(tmp_path / name) for name in ("labels", "embeddings")]
    words = {"template": ENSEMBLE, "class_synonyms": {"Striped": ["banded "]}}
    pseudo_label_images(index, replace(SETTINGS, **words), *outputs, device="cpu", threads=1)
    described = classifier.load_classifier(outputs[1])[1]
    metadata = tables.read(outputs[0], tables.PSEUDO_LABELS)[1]
    for said in (described, metadata):
        assert said["template"] == ENSEMBLE[0]
        assert said["templates"] == ENSEMBLE
        assert said["class_synonyms"] == {"striped": ["banded"]}
        assert said["written_names"] == written
