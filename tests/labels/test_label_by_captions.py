import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions, write_index

from latteclip.cli import main
from latteclip.clip import classifier, encode
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels import fusion
from latteclip.labels import label_by_captions as stage
from latteclip.labels.pseudo_label_images import class_embeddings, feature_column


def generator(seed):
    return torch.Generator().manual_seed(seed)


CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
TEMPLATE = "a photo of a {} texture."
SETTINGS = stage.CaptionLabelSettings(f"local-dir:{DEMO_CLIP}", None, batch_size=3)
IMAGES = 60


class Dataset:
    """Files of a dataset of which every fourth image is a test image without captions."""

    def __init__(self, folder, clip):
        self.folder, self.clip = folder, clip
        draw = generator(1)
        classes = torch.randint(6, (IMAGES,), generator=draw)
        self.embeddings = class_embeddings(clip, TEMPLATE, CLASSNAMES)  # [C, D]
        self.scale = clip.model.logit_scale.exp().item()
        noise = 0.5 * torch.randn(IMAGES, self.embeddings.shape[1], generator=draw)
        self.features = F.normalize(self.embeddings[classes] + noise, dim=1)
        self.labels = (self.features @ self.embeddings.T).argmax(1).tolist()
        self.names = [f"{number:03d}.png" for number in range(IMAGES)]
        self.splits = ["test" if number % 4 == 3 else "train" for number in range(IMAGES)]
        self.training = [number for number in range(IMAGES) if number % 4 != 3]
        self.captions = {
            self.names[i]: f"a {CLASSNAMES[(classes[i] + (i % 5 == 0)) % 6]} texture, number {i}."
            for i in self.training
        }
        self.groups = [[self.names[i]] * 4 for i in self.training[:20]]
        self.true_labels = classes.tolist()
        self.described = {
            "classnames": CLASSNAMES,
            "model": SETTINGS.model,
            "pretrained": None,
            "template": TEMPLATE,
            "logit_scale": self.scale,
        }

    def run(self, *, training=None, settings=SETTINGS):
        """The table written and its metadata."""
        path = self.folder
        index = write_index(
            path / "images.parquet", self.names, self.splits, self.true_labels, CLASSNAMES
        )
        n = len(self.names)
        tables.write(
            path / "pseudo_labels.parquet",
            {
                "image_id": self.names,
                "split": self.splits,
                "pseudo_label": pa.array(self.labels, pa.int32()),
                "confidence": pa.nulls(n, pa.float32()),
                "topk_labels": [[label] for label in self.labels],
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
        numbers = [str(number) for number in range(len(self.groups))]
        write_captions(
            path / "groups.parquet",
            numbers,
            ["all of them woven."] * len(numbers),
            members=self.groups,
        )
        stage.label_by_captions(
            stage.CaptionLabelFiles(
                index,
                str(path / "pseudo_labels.parquet"),
                str(path / "class_embeddings.safetensors"),
                str(path / "captions.parquet"),
                str(path / "groups.parquet"),
            ),
            settings,
            str(path / "out.parquet"),
            device="cpu",
            threads=1,
        )
        table, metadata = tables.read(path / "out.parquet", tables.CAPTION_LABELS)
        return table.to_pydict(), metadata


@pytest.fixture
def dataset(tmp_path, demo_clip):
    return Dataset(tmp_path, demo_clip)


@torch.no_grad()
def votes_one_by_one(dataset, texts):
    """Votes [T, C], each text encoded alone at full length."""
    clip = dataset.clip
    features = [F.normalize(clip.model.encode_text(clip.tokenizer([t]))[0], dim=0) for t in texts]
    scores = dataset.scale * torch.stack(features) @ dataset.embeddings.T
    return scores.double().softmax(1)


def test_captions_are_scored_like_images_one_by_one(dataset):
    columns, metadata = dataset.run()
    training = [dataset.names[i] for i in dataset.training]
    assert columns["image_id"] == training
    votes = votes_one_by_one(dataset, list(dataset.captions.values()))
    assert columns["caption_label"] == votes.argmax(1).tolist()
    assert columns["caption_confidence"] == pytest.approx(votes.amax(1).tolist(), abs=1e-4)
    own = [dataset.labels[i] for i in dataset.training]
    agreement = sum(a == b for a, b in zip(columns["caption_label"], own, strict=True)) / len(own)
    assert metadata["agreement"] == pytest.approx(agreement)


def test_the_table_is_the_fusion_of_the_votes(dataset):
    columns, metadata = dataset.run()
    zero_shot = dataset.scale * dataset.features[dataset.training] @ dataset.embeddings.T
    zero_shot = zero_shot.double().log_softmax(1)
    votes = votes_one_by_one(dataset, list(dataset.captions.values()))
    group_votes = torch.zeros_like(votes)
    group_votes[:20] = votes_one_by_one(dataset, ["all of them woven."])
    fused = fusion.fuse(zero_shot, votes, group_votes, zero_shot.argmax(1))
    assert fused.model is not None
    confidence, labels = fused.log_posterior.exp().max(1)
    assert columns["fused_label"] == labels.tolist()
    assert columns["fused_confidence"] == pytest.approx(confidence.tolist(), abs=1e-3)
    assert metadata["evidence"] == pytest.approx(fused.evidence, rel=1e-3)
    assert metadata["temperature"] == pytest.approx(
        fused.model.log_temperature.exp().item(), rel=1e-2
    )
    assert metadata["class_weights"] == pytest.approx(fused.model.weights().tolist(), rel=1e-2)
    assert metadata["changed"] == sum(
        a != b
        for a, b in zip(
            columns["fused_label"], [dataset.labels[i] for i in dataset.training], strict=True
        )
    )
    assert metadata["classnames"] == CLASSNAMES
    assert metadata["model"] == SETTINGS.model


def test_right_captions_make_more_labels_right(dataset):
    columns, _ = dataset.run()
    wanted = [dataset.true_labels[i] for i in dataset.training]
    before = [dataset.labels[i] for i in dataset.training]
    right = sum(a == b for a, b in zip(columns["fused_label"], wanted, strict=True))
    assert right > sum(a == b for a, b in zip(before, wanted, strict=True))


def test_a_group_label_is_that_of_the_groups_of_the_image(dataset):
    columns, _ = dataset.run()
    assert columns["group_label"] == [2] * 20 + [None] * (len(dataset.training) - 20)


def test_useless_captions_leave_the_zero_shot_labels(dataset, caplog):
    dataset.captions = dict.fromkeys(dataset.captions, "a photo of something.")
    with caplog.at_level(logging.INFO, "latteclip"):
        columns, metadata = dataset.run()
    assert columns["fused_label"] == [dataset.labels[i] for i in dataset.training]
    assert metadata["rate"] == metadata["group_rate"] == metadata["changed"] == 0
    assert "; 0 labels changed." in caplog.text


def test_an_empty_caption_votes_for_nothing(dataset):
    whole, _ = dataset.run()
    empty = [dataset.names[i] for i in dataset.training[:3]]
    dataset.captions |= dict(zip(empty, ["", "  ", None], strict=True))
    columns, metadata = dataset.run()
    assert columns["caption_label"][:3] == [dataset.labels[i] for i in dataset.training[:3]]
    assert columns["caption_label"][3:] == whole["caption_label"][3:]
    assert columns["caption_confidence"][:3] == [0, 0, 0]
    assert metadata["captions"] == len(dataset.training) - 3


def test_without_any_caption_the_zero_shot_labels_stay(dataset):
    dataset.captions = dict.fromkeys(dataset.captions, "")
    columns, metadata = dataset.run()
    own = [dataset.labels[i] for i in dataset.training]
    assert columns["fused_label"] == columns["caption_label"] == own
    assert (metadata["captions"], metadata["agreement"]) == (0, 0)


def test_a_caption_of_thousands_of_words_is_cut(dataset):
    name = dataset.names[dataset.training[0]]
    dataset.captions[name] = "a woven texture. " + "very " * 5000
    columns, _ = dataset.run()
    votes = votes_one_by_one(dataset, [dataset.captions[name]])
    assert columns["caption_label"][0] == votes.argmax().item()


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
    assert batches == [3, 3]  # four texts, the dotted one, and that of the groups


def test_captions_that_were_told_the_label_are_warned_of(dataset, caplog, monkeypatch):
    lookup = tables.lookup

    def told(path, schema, key, column, ids):
        values = lookup(path, schema, key, column, ids)
        return [f"Is it {i}?" for i in range(len(ids))] if column == "prompt" else values

    dataset.run()
    assert "pseudo-labels in the prompt" not in caplog.text
    monkeypatch.setattr(tables, "lookup", told)
    dataset.run()
    assert "pseudo-labels in the prompt" in caplog.text


def test_no_label_of_an_image_is_read(dataset):
    dataset.run()
    before = (dataset.folder / "out.parquet").read_bytes()
    dataset.true_labels = [None] * IMAGES
    dataset.run()
    assert (dataset.folder / "out.parquet").read_bytes() == before


def test_the_order_of_the_files_does_not_matter(dataset):
    there, _ = dataset.run()
    dataset.captions = dict(reversed(dataset.captions.items()))
    dataset.groups.reverse()
    back, _ = dataset.run()
    for column in ("image_id", "caption_label", "group_label", "fused_label"):
        assert back[column] == there[column]
    assert back["fused_confidence"] == pytest.approx(there["fused_confidence"], abs=1e-4)


def test_missing_captions_are_refused(dataset):
    first, second, *_ = dataset.captions
    del dataset.captions[first], dataset.captions[second]
    with pytest.raises(UserError, match=r"captions\.parquet lacks 2 of 45 images, the first '000"):
        dataset.run()
    assert not (dataset.folder / "out.parquet").exists()


def test_missing_image_features_are_refused(dataset, monkeypatch):
    read = tables.read

    def shortened(path, schema, columns=None):
        table, metadata = read(path, schema, columns)
        of_labels = Path(path).name == "pseudo_labels.parquet"
        return (table.slice(2) if of_labels else table), metadata

    monkeypatch.setattr(tables, "read", shortened)
    with pytest.raises(UserError, match=r"pseudo_labels\.parquet lacks 2 of 45 images"):
        dataset.run()


def test_a_group_with_a_test_image_is_refused(dataset):
    dataset.groups[3][1] = dataset.names[3]
    with pytest.raises(UserError, match=r"groups\.parquet names the image '003\.png'"):
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


def test_the_command_hands_over(dataset):
    columns, _ = dataset.run()
    folder = dataset.folder
    settings = {"model": SETTINGS.model, "pretrained": None, "batch_size": 3, "precision": "bf16"}
    files = {
        "images": "images",
        "pseudo-labels": "pseudo_labels",
        "image-captions": "captions",
        "group-captions": "groups",
        "output": "again",
    }
    options = [x for key, name in files.items() for x in (f"--{key}", f"{folder / name}.parquet")]
    options += ["--class-embeddings", str(folder / "class_embeddings.safetensors")]
    options += ["--settings", json.dumps(settings), "--device", "cpu", "--threads", "1"]
    assert main.main(["label-by-captions", *options]) == 0
    assert pq.read_table(folder / "again.parquet").to_pydict() == columns
    assert Path(folder / "again.parquet").read_bytes() == (folder / "out.parquet").read_bytes()
