import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.tiny import write_index

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core import holdout, tables
from latteclip.core.errors import UserError
from latteclip.evaluate import evaluate_classifier as stage
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS

N_TRAIN, N_TEST, C, D = 11, 7, 6, 5
CLASSNAMES = [f"class {c}" for c in range(C)]
NAMES = [f"{i}.png" for i in range(N_TRAIN + N_TEST)]
LABELS = [i % C for i in range(N_TRAIN + N_TEST)]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Features, a classifier with biases, and a function that runs the stage."""
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 3)
    torch.manual_seed(0)
    features, weights, bias = torch.randn(18, D), torch.randn(C, D), torch.randn(C)
    splits = ["train"] * N_TRAIN + ["test"] * N_TEST
    index = write_index(tmp_path / "images.parquet", NAMES, splits, LABELS, CLASSNAMES)
    columns = {field.name: pa.nulls(18, field.type) for field in tables.PSEUDO_LABELS}
    columns |= {
        "image_id": NAMES,
        "split": splits,
        "image_features": tables.list_column(features.numpy()),
    }
    columns |= {"pseudo_label": np.resize(np.arange(C), 18), "confidence": np.linspace(0, 1, 18)}
    pseudo_labels = str(tmp_path / "pseudo_labels.parquet")
    tables.write(pseudo_labels, columns, tables.PSEUDO_LABELS)
    classifier = str(tmp_path / "classifier.safetensors")

    def run(votes=None, classnames=CLASSNAMES, eyes=()):
        save_classifier(classifier, Classifier.of(weights, bias), {"classnames": classnames})
        stage.evaluate_classifier(
            *(index, pseudo_labels, classifier, votes),
            stage.ClassifierSettings(5, ["ours"]),
            *("set", "image_prototypes", 0),
            *(str(tmp_path / "predictions.parquet"), str(tmp_path / "metrics.json")),
            str(tmp_path / "train_predictions.parquet"),
            eyes,
        )
        return tmp_path

    run.classes = [int((weights @ feature + bias).argmax()) for feature in features]
    return run


def test_features_of_other_models_stand_beside_clip_s(case, tmp_path):
    alone = case() / "predictions.parquet"
    before = tables.read(alone, tables.PREDICTIONS)[0]["prediction"].to_pylist()
    table, _ = tables.read(tmp_path / "pseudo_labels.parquet", tables.PSEUDO_LABELS)
    features = np.stack(table["image_features"].to_pylist())
    tables.write(
        tmp_path / "pseudo_labels.parquet",
        {
            **{name: table[name] for name in table.column_names},
            "image_features": tables.list_column(features[:, :2]),
        },
        tables.PSEUDO_LABELS,
    )
    order = np.arange(18)[::-1]  # another order of images
    columns = {
        "image_id": [NAMES[i] for i in order],
        "image_features": tables.list_column(features[order, 2:]),
    }
    tables.write(tmp_path / "eye.parquet", columns, tables.IMAGE_FEATURES, {"model": "an eye"})
    votes = {"image_id": NAMES[:3], "vote": [[1.0] * C] * 3, "head": [0] * 3}
    path = str(tmp_path / "votes.parquet")
    tables.write(path, {**votes, "joint_head": [3, 1, 2]}, tables.VOTES_EYES)
    case(votes=path, eyes=[str(tmp_path / "eye.parquet")])
    after = tables.read(alone, tables.PREDICTIONS)[0]["prediction"].to_pylist()
    assert after == before
    assert [prediction for _, prediction in rows(tmp_path, held_out=True)] == [3, 1, 2]


def rows(folder, *, held_out):
    """The predictions for held-out images, or for examples."""
    table, described = tables.read(folder / "train_predictions.parquet", TRAIN_PREDICTIONS)
    assert described == {"classnames": CLASSNAMES}
    found = [row for row in table.to_pylist() if row["held_out"] == held_out]
    return [(row["image_id"], row["prediction"]) for row in found]


def test_test_images_held_out_images_and_examples_get_their_best_class(case):
    folder = case()
    predictions, _ = tables.read(folder / "predictions.parquet", tables.PREDICTIONS)
    assert predictions["image_id"].to_pylist() == NAMES[N_TRAIN:]
    assert predictions["prediction"].to_pylist() == case.classes[N_TRAIN:]
    found = json.loads((folder / "metrics.json").read_text())
    hits = sum(map(int.__eq__, case.classes[N_TRAIN:], LABELS[N_TRAIN:]))
    assert found["acc1"] == pytest.approx(hits / N_TEST)
    assert found["marks"] == ["ours"]
    apart = holdout.judging(NAMES[:N_TRAIN]).nonzero()[0].tolist()
    assert len(apart) == 3
    assert rows(folder, held_out=True) == [(NAMES[i], case.classes[i]) for i in apart]
    class_of = dict(zip(NAMES[:N_TRAIN], case.classes, strict=False))
    assert dict(rows(folder, held_out=False)) == class_of


def test_a_classifier_of_votes_predicts_held_out_images_without_their_own_vote(case, tmp_path):
    votes = {"image_id": ["7.png", "2.png"], "vote": [[0.5] * C] * 2, "head": [4, 1]}
    columns = {name: pa.array(votes[name], tables.VOTES.field(name).type) for name in votes}
    tables.write(tmp_path / "votes.parquet", columns, tables.VOTES)
    folder = case(str(tmp_path / "votes.parquet"))
    assert rows(folder, held_out=True) == [("7.png", 4), ("2.png", 1)]


def test_a_classifier_of_other_classes_is_refused(case):
    with pytest.raises(UserError, match=r"classifier\.safetensors"):
        case(classnames=CLASSNAMES[::-1])
