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
from latteclip.evaluate import gallery_images, metrics
from latteclip.evaluate.judged import JUDGED

N_TRAIN, N_TEST, C, D = 11, 7, 6, 5
CLASSNAMES = [f"class {c}" for c in range(C)]
NAMES = [f"{i}.png" for i in range(N_TRAIN + N_TEST)]
LABELS = [i % C for i in range(N_TRAIN + N_TEST)]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Features, a classifier with biases, and a function that runs the stage."""
    monkeypatch.setattr(holdout, "MOST", 3)
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

    def run(votes=None, classnames=CLASSNAMES):
        save_classifier(classifier, Classifier.of(weights, bias), {"classnames": classnames})
        stage.evaluate_classifier(
            index,
            pseudo_labels,
            classifier,
            votes,
            5,
            metrics.Run("set", "image_prototypes", 0),
            metrics.Outputs(str(tmp_path / "predictions.parquet"), str(tmp_path / "metrics.json")),
            str(tmp_path / "judged.parquet"),
            str(tmp_path / "gallery.parquet"),
        )
        return tmp_path

    run.classes = [int((weights @ feature + bias).argmax()) for feature in features]
    return run


def test_test_images_and_those_that_judge_get_their_best_class(case):
    folder = case()
    predictions, _ = tables.read(folder / "predictions.parquet", tables.PREDICTIONS)
    assert predictions["image_id"].to_pylist() == NAMES[N_TRAIN:]
    assert predictions["prediction"].to_pylist() == case.classes[N_TRAIN:]
    found = json.loads((folder / "metrics.json").read_text())
    hits = sum(map(int.__eq__, case.classes[N_TRAIN:], LABELS[N_TRAIN:]))
    assert found["acc1"] == pytest.approx(hits / N_TEST)
    assert found["marks"] == ["ours"]
    table, described = tables.read(folder / "judged.parquet", JUDGED)
    apart = holdout.judging(NAMES[:N_TRAIN]).nonzero()[0].tolist()
    assert len(apart) == 3
    wanted = [{"image_id": NAMES[i], "prediction": case.classes[i]} for i in apart]
    assert table.to_pylist() == wanted
    assert described == {"classnames": CLASSNAMES}
    gallery, _ = tables.read(folder / "gallery.parquet", gallery_images.GALLERY)
    rows = [NAMES.index(name) for name in gallery["image_id"].to_pylist()]
    assert sorted(rows) == list(range(N_TRAIN))
    assert gallery["prediction"].to_pylist() == [case.classes[row] for row in rows]


def test_what_was_made_of_votes_is_judged_without_the_images_own_part(case, tmp_path):
    votes = {"image_id": ["7.png", "2.png"], "vote": [[0.5] * C] * 2, "head": [4, 1]}
    columns = {name: pa.array(votes[name], tables.VOTES.field(name).type) for name in votes}
    tables.write(tmp_path / "votes.parquet", columns, tables.VOTES)
    table, _ = tables.read(case(str(tmp_path / "votes.parquet")) / "judged.parquet", JUDGED)
    assert table.to_pylist() == [
        {"image_id": "7.png", "prediction": 4},
        {"image_id": "2.png", "prediction": 1},
    ]


def test_a_classifier_of_other_classes_is_refused(case):
    with pytest.raises(UserError, match=r"classifier\.safetensors"):
        case(classnames=CLASSNAMES[::-1])
