import json
import logging
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions, write_index

from latteclip.cli import main
from latteclip.clip import classifier, encode
from latteclip.clip.class_embeddings import class_embeddings
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels import fusion
from latteclip.labels import label_by_captions as stage
from latteclip.labels.features import feature_column
from latteclip.labels.witnesses import CaptionVotes, Images, ScoreVotes

CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
TEMPLATE = "a photo of a {} texture."
SETTINGS = stage.CaptionLabelSettings(f"local-dir:{DEMO_CLIP}", None, batch_size=3)
IMAGES = 160
C, K = 6, 4
OUTPUTS = ("out.parquet", "classifier")


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Dataset:
    """Files of a dataset of which every fourth image is a test image without captions."""

    def __init__(self, folder, clip):
        self.folder, self.clip = folder, clip
        draw = generator(1)
        self.classes = torch.randint(C, (IMAGES,), generator=draw)
        self.embeddings = class_embeddings(clip, [TEMPLATE], CLASSNAMES)  # [C, D]
        self.scale = clip.model.logit_scale.exp().item()
        noise = 0.3 * torch.randn(IMAGES, self.embeddings.shape[1], generator=draw)
        self.features = F.normalize(self.embeddings[self.classes] + noise, dim=1)
        self.names = [f"{number:03d}.png" for number in range(IMAGES)]
        self.splits = ["test" if number % 4 == 3 else "train" for number in range(IMAGES)]
        self.training = [number for number in range(IMAGES) if number % 4 != 3]
        self.captions = {
            self.names[i]: f"a {CLASSNAMES[(self.classes[i] + (i % 5 == 0)) % C]} texture, no. {i}."
            for i in self.training
        }
        # The true class is among the options, and is the likeliest one for most images.
        self.options = torch.stack(
            [(self.classes[i] + torch.arange(K)) % C for i in self.training]
        )  # [N, K]
        self.scores = torch.randn(len(self.training), K, generator=draw)
        self.scores[:, 0] += 2
        self.true_labels = self.classes.tolist()
        self.described = {
            "classnames": CLASSNAMES,
            "model": SETTINGS.model,
            "pretrained": None,
            "template": TEMPLATE,
            "logit_scale": self.scale,
        }

    def write(self):
        path = self.folder
        write_index(path / "images.parquet", self.names, self.splits, self.true_labels, CLASSNAMES)
        n = len(self.names)
        tables.write(
            path / "pseudo_labels.parquet",
            {
                "image_id": self.names,
                "split": self.splits,
                "pseudo_label": pa.array([0] * n, pa.int32()),
                "confidence": pa.nulls(n, pa.float32()),
                "topk_labels": [[0]] * n,
                "topk_scores": [[0.5]] * n,
                "image_features": feature_column(self.features),
            },
            tables.PSEUDO_LABELS,
        )
        classifier.save_classifier(
            path / "class_embeddings.safetensors",
            classifier.Classifier.of(self.embeddings),
            self.described,
        )
        write_captions(path / "captions.parquet", list(self.captions), list(self.captions.values()))
        given = self.options >= 0
        tables.write(
            path / "class_scores.parquet",
            {
                "image_id": [self.names[i] for i in self.training],
                "options": [
                    row[own].tolist() for row, own in zip(self.options, given, strict=True)
                ],
                "log_probabilities": [
                    row[own].tolist() for row, own in zip(self.scores, given, strict=True)
                ],
                "none": pa.nulls(len(given), pa.float32()),
                "error": pa.nulls(len(given), pa.string()),
                "digest": pa.nulls(len(given), pa.string()),
            },
            tables.CLASS_SCORES,
        )

    def run(self, *, captions=True, scores=False, settings=SETTINGS):
        """The table written and its metadata."""
        self.write()
        path = self.folder
        files = stage.CaptionLabelFiles(
            str(path / "images.parquet"),
            str(path / "pseudo_labels.parquet"),
            str(path / "class_embeddings.safetensors"),
            str(path / "captions.parquet") if captions else None,
            str(path / "class_scores.parquet") if scores else None,
        )
        outputs = [str(path / name) for name in OUTPUTS]
        stage.label_by_captions(files, settings, *outputs, device="cpu", threads=1)
        table, metadata = tables.read(path / "out.parquet", tables.CAPTION_LABELS)
        return table.to_pydict(), metadata

    def bytes(self):
        return [(self.folder / name).read_bytes() for name in OUTPUTS]

    def images(self):
        return Images.of(self.features[self.training], self.embeddings, self.scale)

    def calibrated(self):
        scores = self.features[self.training].double() @ self.embeddings.double().T
        return (scores - scores.mean(dim=0)).argmax(1).tolist()

    def right(self, labels):
        wanted = self.classes[self.training].tolist()
        return sum(a == b for a, b in zip(labels, wanted, strict=True)) / len(wanted)


@pytest.fixture
def dataset(tmp_path, demo_clip):
    return Dataset(tmp_path, demo_clip)


@torch.no_grad()
def encode_one_by_one(dataset, texts):
    """Features [T, D], each text encoded alone at full length."""
    clip = dataset.clip
    features = [F.normalize(clip.model.encode_text(clip.tokenizer([t]))[0], dim=0) for t in texts]
    return torch.stack(features)


def assert_is_fusion(dataset, columns, metadata, votes):
    """The table, its metadata and the classifier are what `fuse` makes of the votes."""
    images = dataset.images()
    fused = fusion.fuse(images, votes)
    assert fused.trust.corroboration.found
    assert columns["fused_label"] == fused.labels.tolist()
    assert columns["fused_confidence"] == pytest.approx(fused.confidence.tolist(), abs=1e-3)
    assert columns["image_label"] == fused.said["images"].tolist()
    assert columns["calibrated_label"] == fused.said["zero_shot"].tolist()
    assert metadata["rate"] == pytest.approx(fused.trust.rate, rel=1e-3)
    assert metadata["gains"] == pytest.approx(fused.gains, rel=1e-3)
    weights = {
        "zero_shot": fused.trust.zero_shot,
        "images": fused.trust.images,
        "texts": fused.trust.texts,
    }
    assert metadata["weights"] == pytest.approx(weights, rel=1e-2, abs=1e-3)
    assert metadata["corroborated"] is True
    assert metadata["corroboration"] == pytest.approx(
        {
            "images": fused.trust.corroboration.images,
            "zero_shot": fused.trust.corroboration.zero_shot,
            "p_value": 0.001,
        },
        rel=1e-3,
    )
    found, described = classifier.load_classifier(dataset.folder / "classifier")
    wanted = images.classifier(fused.weights, dataset.scale)
    torch.testing.assert_close(found.weights, wanted.weights, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.bias, wanted.bias, atol=1e-3, rtol=1e-3)
    assert described == dataset.described


# --- captions ------------------------------------------------------------------------------------


def test_captions_by_themselves_are_scored_like_images_one_by_one(dataset):
    columns, metadata = dataset.run()
    assert columns["image_id"] == [dataset.names[i] for i in dataset.training]
    texts = encode_one_by_one(dataset, dataset.captions.values())
    votes = (dataset.scale * texts @ dataset.embeddings.T).double().softmax(1)
    assert columns["caption_label"] == votes.argmax(1).tolist()
    assert columns["caption_confidence"] == pytest.approx(votes.amax(1).tolist(), abs=1e-4)
    assert columns["lmm_label"] == columns["lmm_confidence"] == [None] * 120
    assert columns["calibrated_label"] == dataset.calibrated()
    pairs = list(zip(columns["caption_label"], columns["calibrated_label"], strict=True))
    assert metadata["agreement"] == pytest.approx(sum(a == b for a, b in pairs) / 120)
    assert (metadata["votes"], metadata["voting"]) == ("captions", 120)


def test_the_table_is_the_fusion_of_the_captions_votes(dataset):
    columns, metadata = dataset.run()
    texts = encode_one_by_one(dataset, dataset.captions.values())
    texts = torch.cat([texts, torch.zeros(1, texts.shape[1])])
    votes = CaptionVotes.of(texts, torch.arange(120), dataset.embeddings, dataset.scale)
    assert_is_fusion(dataset, columns, metadata, votes)
    pairs = zip(columns["fused_label"], columns["calibrated_label"], strict=True)
    assert metadata["changed"] == sum(a != b for a, b in pairs) > 0
    assert metadata.items() >= dataset.described.items()
    assert dataset.right(columns["fused_label"]) > dataset.right(dataset.calibrated())


def test_the_log_says_what_the_captions_did(dataset, caplog):
    with caplog.at_level(logging.INFO, "latteclip"):
        _, metadata = dataset.run()
    assert f"120 captions agree with {metadata['agreement']:.1%} of the calibrated" in caplog.text
    times = math.exp(metadata["gains"]["zero_shot"])
    assert f"Zero-shot scores make a vote {times:.2f} times as likely" in caplog.text
    assert f"{metadata['changed']} labels changed." in caplog.text


def test_useless_captions_leave_the_calibrated_labels(dataset, caplog):
    dataset.captions = dict.fromkeys(dataset.captions, "a photo of something.")
    with caplog.at_level(logging.INFO, "latteclip"):
        columns, metadata = dataset.run()
    assert columns["fused_label"] == columns["calibrated_label"] == dataset.calibrated()
    assert columns["image_label"] == [None] * 120
    assert metadata["corroborated"] is False
    assert (metadata["rate"], metadata["changed"], metadata["gains"]) == (0, 0, {})
    assert metadata["weights"] == {"zero_shot": 1, "images": 0, "texts": 0}
    assert "(p-value 1.000). So they do not count" in caplog.text
    found, _ = classifier.load_classifier(dataset.folder / "classifier")
    scores = dataset.features[dataset.training] @ dataset.embeddings.T
    torch.testing.assert_close(found.bias, -scores.mean(dim=0), atol=1e-5, rtol=1e-4)


def test_an_empty_caption_votes_for_nothing(dataset):
    whole, _ = dataset.run()
    empty = [dataset.names[i] for i in dataset.training[:3]]
    dataset.captions |= dict(zip(empty, ["", "  ", None], strict=True))
    columns, metadata = dataset.run()
    assert columns["caption_label"][:3] == dataset.calibrated()[:3]
    assert columns["caption_label"][3:] == whole["caption_label"][3:]
    assert columns["caption_confidence"][:3] == [0, 0, 0]
    assert metadata["voting"] == 117


def test_without_any_caption_the_calibrated_labels_stay(dataset):
    dataset.captions = dict.fromkeys(dataset.captions, "")
    columns, metadata = dataset.run()
    assert columns["fused_label"] == columns["caption_label"] == dataset.calibrated()
    assert (metadata["voting"], metadata["agreement"], metadata["changed"]) == (0, 0, 0)


def test_a_caption_of_thousands_of_words_is_cut(dataset):
    name = dataset.names[dataset.training[0]]
    dataset.captions[name] = "a woven texture. " + "very " * 5000
    columns, _ = dataset.run()
    texts = encode_one_by_one(dataset, [dataset.captions[name]])
    assert columns["caption_label"][0] == (texts @ dataset.embeddings.T).argmax().item()


def test_each_distinct_caption_is_encoded_once(dataset, monkeypatch):
    dataset.captions = dict.fromkeys(dataset.captions, " a dotted texture.")
    for number in range(7):
        dataset.captions[dataset.names[dataset.training[number]]] = f"text {number % 4}"
    batches = []

    def count(clip, tokens):
        batches.append(len(tokens))
        assert not torch.is_grad_enabled()
        return encode_texts(clip, tokens)

    encode_texts = encode.encode_texts
    monkeypatch.setattr(encode, "encode_texts", count)
    dataset.run()
    assert batches == [3, 2]  # four texts and the dotted one


def test_captions_that_were_told_the_label_are_warned_of(dataset, caplog, monkeypatch):
    lookup = tables.lookup_column

    def told(path, schema, key, column, ids):
        prompts = pa.chunked_array([[f"Is it {i}?" for i in range(len(ids))]])
        return prompts if column == "prompt" else lookup(path, schema, key, column, ids)

    dataset.run()
    assert "pseudo-labels in the prompt" not in caplog.text
    monkeypatch.setattr(tables, "lookup_column", told)
    dataset.run()
    assert "pseudo-labels in the prompt" in caplog.text


# --- class scores --------------------------------------------------------------------------------


def test_class_scores_alone_vote_without_a_model(dataset, monkeypatch):
    monkeypatch.setattr(stage.clips, "load", lambda *_: 1 / 0)
    columns, metadata = dataset.run(captions=False, scores=True)
    votes = ScoreVotes.of(dataset.options, dataset.scores, C)
    assert_is_fusion(dataset, columns, metadata, votes)
    best = votes.probabilities(slice(None)).max(dim=1)
    assert columns["lmm_label"] == best.indices.tolist()
    assert columns["lmm_confidence"] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert columns["caption_label"] == columns["caption_confidence"] == [None] * 120
    assert (metadata["votes"], metadata["voting"]) == ("class scores", 120)
    assert dataset.right(columns["fused_label"]) > dataset.right(dataset.calibrated())


def test_where_there_are_both_the_scores_vote_and_captions_speak_for_themselves(dataset, caplog):
    captions, _ = dataset.run()
    scores, alone = dataset.run(captions=False, scores=True)
    with caplog.at_level(logging.INFO, "latteclip"):
        columns, metadata = dataset.run(scores=True)
    assert columns == {
        **scores,
        "caption_label": captions["caption_label"],
        "caption_confidence": captions["caption_confidence"],
    }
    assert metadata == alone
    assert "120 class scores agree with" in caplog.text


def test_an_image_without_options_has_no_vote(dataset):
    dataset.options[:5] = -1
    dataset.options[5, 2:] = -1
    columns, metadata = dataset.run(captions=False, scores=True)
    assert columns["lmm_label"][:5] == dataset.calibrated()[:5]
    assert columns["lmm_confidence"][:5] == [0] * 5
    assert columns["lmm_label"][5] in dataset.options[5, :2].tolist()
    assert metadata["voting"] == 115
    assert None not in columns["fused_label"]


def test_scores_of_minus_infinity_are_finite_labels(dataset):
    dataset.scores[::7] = -torch.inf
    dataset.scores[1, 0] = -torch.inf
    columns, _ = dataset.run(captions=False, scores=True)
    assert all(0 < value <= 1 for value in columns["fused_confidence"])
    assert all(0 < value <= 1 for value in columns["lmm_confidence"])


def test_somebody_must_vote(dataset):
    with pytest.raises(UserError, match="give --image-captions or --class-scores"):
        dataset.run(captions=False)
    assert not any((dataset.folder / name).exists() for name in OUTPUTS)


# --- files ---------------------------------------------------------------------------------------


def test_no_label_of_an_image_is_read(dataset):
    dataset.run()
    before = dataset.bytes()
    dataset.true_labels = [None] * IMAGES
    dataset.run()
    assert dataset.bytes() == before


def test_test_images_have_no_part_in_it(dataset):
    dataset.run()
    before = dataset.bytes()
    test = [i for i in range(IMAGES) if i % 4 == 3]
    dataset.features[test] = dataset.features[test].roll(1, dims=1)
    dataset.captions |= {dataset.names[i]: "a grid." for i in test}
    dataset.run()
    assert dataset.bytes() == before


def test_the_order_of_captions_does_not_matter(dataset):
    there, _ = dataset.run()
    dataset.captions = dict(reversed(dataset.captions.items()))
    back, _ = dataset.run()
    for column in ("image_id", "caption_label", "fused_label"):
        assert back[column] == there[column]
    assert back["fused_confidence"] == pytest.approx(there["fused_confidence"], abs=1e-4)


def test_missing_captions_are_refused(dataset):
    first, second, *_ = dataset.captions
    del dataset.captions[first], dataset.captions[second]
    with pytest.raises(UserError, match=r"captions\.parquet lacks 2 of 120 images, the first '000"):
        dataset.run()
    assert not (dataset.folder / "out.parquet").exists()


def test_missing_image_features_are_refused(dataset, monkeypatch):
    read = tables.read

    def shortened(path, schema, columns=None):
        table, metadata = read(path, schema, columns)
        of_labels = Path(path).name == "pseudo_labels.parquet"
        return (table.slice(2) if of_labels else table), metadata

    monkeypatch.setattr(tables, "read", shortened)
    with pytest.raises(UserError, match=r"pseudo_labels\.parquet lacks 2 of 120 images"):
        dataset.run()


@pytest.mark.parametrize(
    ("key", "value"), [("classnames", ["x", *CLASSNAMES[1:]]), ("model", "other")]
)
def test_class_embeddings_of_something_else_are_refused(dataset, key, value):
    dataset.described[key] = value
    with pytest.raises(UserError, match="of other classes or another CLIP"):
        dataset.run()


def test_a_dataset_without_training_images_is_refused(dataset):
    dataset.splits = ["test"] * IMAGES
    with pytest.raises(UserError, match="no training image"):
        dataset.run()


@pytest.mark.parametrize("scores", [False, True])
def test_the_command_hands_over(dataset, scores):
    columns, _ = dataset.run(captions=not scores, scores=scores)
    before, folder = dataset.bytes(), dataset.folder
    settings = {"model": SETTINGS.model, "pretrained": None, "batch_size": 3, "precision": "bf16"}
    files = {
        "images": "images.parquet",
        "pseudo-labels": "pseudo_labels.parquet",
        "class-embeddings": "class_embeddings.safetensors",
        "class-scores" if scores else "image-captions": (
            "class_scores.parquet" if scores else "captions.parquet"
        ),
        "output": OUTPUTS[0],
        "prototypes": OUTPUTS[1],
    }
    options = [word for key, name in files.items() for word in (f"--{key}", str(folder / name))]
    options += ["--settings", json.dumps(settings), "--device", "cpu", "--threads", "1"]
    for name in OUTPUTS:
        (folder / name).unlink()
    assert main.main(["label-by-captions", *options]) == 0
    assert dataset.bytes() == before
    assert tables.read(folder / OUTPUTS[0], tables.CAPTION_LABELS)[0].to_pydict() == columns
