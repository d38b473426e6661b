import json
from pathlib import Path

import pytest
from support.tiny import write_index, write_pictures

from latteclip.core import tables
from latteclip.evaluate import evaluate_zero_shot as stage
from latteclip.evaluate import metrics
from latteclip.evaluate.judged import JUDGED

CLASSNAMES = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture
def pictures(tmp_path):
    files = write_pictures(tmp_path / "pictures", 6)
    return files, ["test", "train", "test", "test", "val", "test"], [2, 0, 1, 6, 3, 2]


def test_zero_shot_row_scores_the_pseudo_labels_of_the_test_split(tmp_path, pictures):
    files, splits, labels = pictures
    index = write_index(tmp_path / "images.parquet", files, splits, labels, CLASSNAMES)
    best = [[2, 1, 0, 3, 4], [0] * 5, [3, 2, 4, 5, 6], [5, 6, 1, 2, 3], [1] * 5, [2, 0, 1, 3, 4]]
    names = [Path(file).name for file in files]
    tables.write(
        tmp_path / "pseudo.parquet",
        {
            "image_id": names[::-1],
            "split": splits[::-1],
            "pseudo_label": [row[0] for row in best[::-1]],
            "confidence": [0.5] * 6,
            "topk_labels": best[::-1],
            "topk_scores": [[0.9, 0.8, 0.7, 0.6, 0.5]] * 6,
            "image_features": [[1.0]] * 6,
        },
        tables.PSEUDO_LABELS,
    )
    stage.evaluate_zero_shot(
        index,
        str(tmp_path / "pseudo.parquet"),
        metrics.Run("set", "zero_shot", 0),
        metrics.Outputs(str(tmp_path / "predictions.parquet"), str(tmp_path / "metrics.json")),
        str(tmp_path / "judged.parquet"),
    )
    predictions, _ = tables.read(tmp_path / "predictions.parquet", tables.PREDICTIONS)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert predictions["prediction"].to_pylist() == [2, 3, 5, 2]  # of the labels 2, 1, 6, 2
    assert found["acc1"] == 0.5
    assert found["acc5"] == 0.75
    assert found["mean_per_class_recall"] == pytest.approx(1 / 3)
    assert found["marks"] == []
    judged, _ = tables.read(tmp_path / "judged.parquet", JUDGED)
    assert judged.to_pylist() == [
        {"image_id": names[1], "prediction": 0},
        {"image_id": names[4], "prediction": 1},
    ]
