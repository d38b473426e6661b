import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.tiny import write_index, write_pictures, write_pseudo_labels

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.core import holdout, tables
from latteclip.core.errors import UserError
from latteclip.evaluate import evaluate as stage
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS

CLASSNAMES = ["a", "b", "c", "d", "e", "f", "g"]
C = 7


@pytest.fixture
def pictures(tmp_path):
    files = write_pictures(tmp_path / "pictures", 6)
    return files, ["test", "train", "test", "test", "val", "test"], [2, 0, 1, 6, 3, 2]


CONFIDENCE = [0.5, 0.25, 0.5, 0.5, 0.75, 0.5]


def run(tmp_path, index, fold):
    """The stage, after writing pseudo-labels for it."""
    names = tables.read(index, tables.IMAGES, ["image_id"])[0]["image_id"].to_pylist()
    pseudo_labels = write_pseudo_labels(
        tmp_path / "pseudo_labels.parquet", names, [0] * len(names), CONFIDENCE
    )
    stage.evaluate(
        index,
        pseudo_labels,
        str(tmp_path / "model"),
        str(tmp_path / "history.parquet"),
        stage.EvaluateSettings(batch_size=3, topk=5, fold=fold),
        dataset="set",
        method="latteclip",
        seed=4,
        predictions_output=str(tmp_path / "predictions.parquet"),
        metrics_output=str(tmp_path / "metrics.json"),
        train_predictions_output=str(tmp_path / "train_predictions.parquet"),
        device="cpu",
        threads=1,
    )


def evaluate(
    tmp_path,
    index,
    classifier,
    demo_clip,
    classnames=CLASSNAMES,
    history=None,
    fold=holdout.NO_FOLD,
):
    clips.save(demo_clip, Classifier.of(classifier), classnames, "{}", tmp_path / "model")
    steps = {"step": pa.array([0, 1], pa.int32()), "loss": pa.array([0.5, 0.25])}
    schema = pa.schema([("step", pa.int32()), ("loss", pa.float64())])
    tables.write(tmp_path / "history.parquet", steps, schema, history)
    run(tmp_path, index, fold)
    predictions, metadata = tables.read(tmp_path / "predictions.parquet", tables.PREDICTIONS)
    return predictions.to_pydict(), metadata, json.loads((tmp_path / "metrics.json").read_text())


def test_test_images_get_the_class_of_the_nearest_prototype(tmp_path, pictures, demo_clip):
    files, splits, labels = pictures
    index = write_index(tmp_path / "images.parquet", files, splits, labels, CLASSNAMES)
    torch.manual_seed(0)
    classifier = torch.nn.functional.normalize(torch.randn(C, 128), dim=1)
    predictions, metadata, found = evaluate(tmp_path, index, classifier, demo_clip)
    tests = [i for i, split in enumerate(splits) if split == "test"]
    assert predictions["image_id"] == [Path(files[i]).name for i in tests]
    assert predictions["label"] == [labels[i] for i in tests]
    hits = 0
    for row, i in enumerate(tests):
        with torch.no_grad():
            feature = demo_clip.model.encode_image(demo_clip.preprocess(Image.open(files[i]))[None])
        scores = ((feature / feature.norm()) @ classifier.T)[0].tolist()
        order = sorted(range(C), key=lambda c, s=scores: -s[c])
        assert predictions["topk_labels"][row] == order[:5]
        assert predictions["prediction"][row] == order[0]
        assert predictions["topk_scores"][row] == pytest.approx(sorted(scores)[::-1][:5], abs=1e-5)
        hits += order[0] == labels[i]
    assert metadata == {"classnames": CLASSNAMES}
    examples = tables.read(tmp_path / "train_predictions.parquet", TRAIN_PREDICTIONS)[0]
    wanted = []
    for file in (files[4], files[1]):  # from the surest on; images of the test split are not shown
        with torch.no_grad():
            feature = demo_clip.model.encode_image(demo_clip.preprocess(Image.open(file))[None])
        label = int((feature @ classifier.T).argmax())
        wanted.append({"image_id": Path(file).name, "prediction": label, "held_out": False})
    assert examples.to_pylist() == wanted
    assert found["acc1"] == hits / 4
    assert {key: found[key] for key in ("dataset", "method", "seed", "images")} == {
        "dataset": "set",
        "method": "latteclip",
        "seed": 4,
        "images": 4,
    }


def held_out(folder):
    """The predictions for the images that were left out of training."""
    table, metadata = tables.read(folder / "train_predictions.parquet", TRAIN_PREDICTIONS)
    assert metadata == {"classnames": CLASSNAMES}
    return [row for row in table.to_pylist() if row["held_out"]]


def test_images_that_were_left_out_get_the_class_of_the_nearest_prototype(
    tmp_path, pictures, demo_clip, monkeypatch
):
    index = write_index(tmp_path / "images.parquet", *pictures, CLASSNAMES)
    torch.manual_seed(0)
    classifier = torch.nn.functional.normalize(torch.randn(C, 128), dim=1)
    fold = holdout.Fold(0.3, number=1, count=3)
    evaluate(tmp_path, index, classifier, demo_clip, fold=fold)
    assert held_out(tmp_path) == []  # two images are too few to leave one out
    monkeypatch.setattr(holdout, "MIN_HELD_OUT", 1)
    evaluate(tmp_path / "more", index, classifier, demo_clip, fold=fold)
    names = [Path(pictures[0][i]).name for i in (1, 4)]
    chosen = [names[i] for i in holdout.left_out(names, fold).nonzero()[0]]
    file = Path(pictures[0][0]).with_name(chosen[0])
    with torch.no_grad():
        feature = demo_clip.model.encode_image(demo_clip.preprocess(Image.open(file))[None])
    prediction = int((feature @ classifier.T).argmax())
    wanted = [{"image_id": chosen[0], "prediction": prediction, "held_out": True}]
    assert held_out(tmp_path / "more") == wanted


def test_a_model_of_other_classes_is_refused(tmp_path, pictures, demo_clip):
    index = write_index(tmp_path / "images.parquet", *pictures, CLASSNAMES)
    with pytest.raises(UserError, match="model"):
        evaluate(tmp_path, index, torch.eye(C, 128), demo_clip, CLASSNAMES[::-1])
    assert not (tmp_path / "metrics.json").exists()
