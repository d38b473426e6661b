import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support import records
from support.tiny import write_index, write_pictures

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.config.keys import ClipSection
from latteclip.core import holdout, tables
from latteclip.core.errors import UserError
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate import evaluate as stage

CLASSNAMES = ["a", "b", "c", "d", "e", "f", "g"]
C = 7


@pytest.fixture
def pictures(tmp_path):
    files = write_pictures(tmp_path / "pictures", 6)
    return files, ["test", "train", "test", "test", "val", "test"], [2, 0, 1, 6, 3, 2]


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(C, 128), dim=1)


@torch.no_grad()
def scores_of(clip, file, classifier):
    feature = clip.model.encode_image(clip.preprocess(Image.open(file))[None])
    return ((feature / feature.norm()) @ classifier.T)[0].tolist()


def evaluate(folder, index, clip, classifier, classnames=CLASSNAMES, fold=holdout.NO_FOLD):
    """Predictions and metrics of the stage, and the predictions for training images."""
    clips.save(clip, Classifier.of(classifier), classnames, "{}", folder / "model")
    schema = pa.schema([("step", pa.int32()), ("loss", pa.float64())])
    metadata = records.training_metadata(flags=["ours"])
    tables.write(
        folder / "history", {"step": [0, 1], "loss": [0.5, 0.25]}, schema, metadata
    )
    outputs = [
        str(folder / name) for name in ("predictions", "metrics", "train_predictions")
    ]
    stage.evaluate(
        index,
        *(str(folder / name) for name in ("model", "history")),
        stage.EvaluateSettings(clip=ClipSection(), fold=fold),
        dataset="set",
        method="latteclip",
        seed=4,
        predictions_output=outputs[0],
        metrics_output=outputs[1],
        train_predictions_output=outputs[2],
        device="cpu",
        threads=1,
    )
    found = []
    for path, kind in (
        (outputs[0], tables.PREDICTIONS),
        (outputs[2], tables.TRAIN_PREDICTIONS),
    ):
        assert tables.read_metadata(path, ClassesMetadata).classnames == CLASSNAMES
        found.append(tables.read(path, kind).to_pylist())
    return found[0], json.loads(Path(outputs[1]).read_text()), found[1]


def test_test_images_get_the_class_of_the_nearest_prototype(
    tmp_path, pictures, demo_clip, classifier
):
    files, splits, labels = pictures
    index = write_index(tmp_path / "images.parquet", files, splits, labels, CLASSNAMES)
    predictions, found, held_out = evaluate(tmp_path, index, demo_clip, classifier)
    tests = [i for i, split in enumerate(splits) if split == "test"]
    hits = 0
    for row, i in zip(predictions, tests, strict=True):
        scores = scores_of(demo_clip, files[i], classifier)
        order = sorted(range(C), key=lambda c, s=scores: -s[c])
        assert (row["image_id"], row["label"]) == (Path(files[i]).name, labels[i])
        assert (row["prediction"], row["topk_labels"]) == (order[0], order[:5])
        assert row["topk_scores"] == pytest.approx(sorted(scores)[::-1][:5], abs=1e-5)
        hits += order[0] == labels[i]
    assert held_out == []
    wanted = {
        "dataset": "set",
        "method": "latteclip",
        "seed": 4,
        "images": 4,
        "acc1": hits / 4,
    }
    wanted["flags"] = ["ours"]
    assert found.items() >= wanted.items()


def test_images_that_were_left_out_get_the_class_of_the_nearest_prototype(
    tmp_path, pictures, demo_clip, classifier, monkeypatch
):
    index = write_index(tmp_path / "images.parquet", *pictures, CLASSNAMES)
    fold = holdout.Fold(0.3, number=1)
    *_, found = evaluate(tmp_path, index, demo_clip, classifier, fold=fold)
    assert found == []  # two images are too few to leave one out
    monkeypatch.setattr(holdout, "left_out", lambda ids, fold: np.array([False, True]))
    *_, found = evaluate(tmp_path / "more", index, demo_clip, classifier, fold=fold)
    chosen = Path(pictures[0][4])
    scores = scores_of(demo_clip, chosen, classifier)
    wanted = {"image_id": chosen.name, "prediction": scores.index(max(scores))}
    assert found == [wanted]


def test_a_model_of_other_classes_is_refused(tmp_path, pictures, demo_clip, classifier):
    index = write_index(tmp_path / "images.parquet", *pictures, CLASSNAMES)
    with pytest.raises(UserError, match="model"):
        evaluate(tmp_path, index, demo_clip, classifier, CLASSNAMES[::-1])
    assert not (tmp_path / "metrics").exists()
