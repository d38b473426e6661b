import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny import write_index

from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate import predictions as module

N, C = 23, 7
CLASSNAMES = ["a", "b", "c"]


def test_the_mean_recall_equals_the_loop():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.resize([0, 1, 2, 3, 5, 6], N))  # none of class 4
    predictions = rng.integers(C, size=N)
    recalls = []
    for c in set(labels.tolist()):
        own = [p for p, label in zip(predictions, labels, strict=True) if label == c]
        recalls.append(sum(p == c for p in own) / len(own))
    assert module.mean_recall(predictions, labels) == pytest.approx(np.mean(recalls))


FILES = [f"{number}.png" for number in range(6)]
SPLITS = ["test", "train", "test", "test", "val", "test"]


def written(tmp_path, labels, flags=()):
    """What is written of four test images whose predictions are 2, 1, 0, 0."""
    index = write_index(tmp_path / "images.parquet", FILES, SPLITS, labels, CLASSNAMES)
    images, names = module.read_evaluated_images(index)
    ranked = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2], [0, 2, 1]])
    scores = np.array([[0.75, 0.5, 0.25]] * 4, np.float32)
    predictions, metrics = (
        str(tmp_path / name) for name in ("predictions.parquet", "metrics.json")
    )
    module.write_tested(
        images, names, ranked, scores, flags, ("set", "m", 4), predictions, metrics
    )
    table = tables.read(predictions, tables.PREDICTIONS)
    assert tables.read_metadata(predictions, ClassesMetadata).classnames == CLASSNAMES
    return table.to_pydict(), json.loads(Path(metrics).read_text())


def test_predictions_of_the_test_split_and_their_metrics_are_written(tmp_path):
    predictions, metrics = written(
        tmp_path, [2, 0, 1, 1, 0, 0], ["supervised", "collapsed"]
    )
    assert predictions == {
        "image_id": ["0.png", "2.png", "3.png", "5.png"],
        "label": [2, 1, 1, 0],
        "prediction": [2, 1, 0, 0],
        "topk_labels": [[2, 0, 1], [1, 2, 0], [0, 1, 2], [0, 2, 1]],
        "topk_scores": [[0.75, 0.5, 0.25]] * 4,
    }
    assert metrics.pop("mean_per_class_recall") == pytest.approx(2.5 / 3)
    assert metrics == {
        "dataset": "set",
        "method": "m",
        "seed": 4,
        "flags": ["supervised", "collapsed"],
        "images": 4,
        "acc1": 0.75,
        "acc5": 1.0,
    }


def test_without_test_labels_there_are_predictions_but_no_metrics(tmp_path):
    predictions, metrics = written(tmp_path, [None] * 6)
    assert predictions["label"] == [None] * 4
    assert predictions["prediction"] == [2, 1, 0, 0]
    assert metrics["acc1"] is metrics["acc5"] is metrics["mean_per_class_recall"] is None
    assert metrics["flags"] == []


def test_without_test_images_all_are_evaluated_and_no_label_is_told(tmp_path):
    splits, labels = ["train", "val"] * 3, [0, None, 1, 2, 0, 1]
    index = write_index(tmp_path / "i.parquet", FILES, splits, labels, CLASSNAMES)
    images, names = module.read_evaluated_images(index)
    assert images["image_id"].to_pylist() == FILES and names == CLASSNAMES
    assert images.schema.equals(tables.IMAGES)
    assert images["label"].null_count == images["classname"].null_count == 6
