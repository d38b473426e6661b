from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import records
from support.tiny import DEMO_CLIP, write_index, write_pictures

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import encode_files
from latteclip.core import holdout, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.files import read_object, write_record
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.evaluate import average_weights as stage
from latteclip.evaluate.average_weights import TrainingResult, average_weights
from latteclip.train.settings import TrainingMetadata

CLASSNAMES = ["striped", "dotted", "woven"]
TEMPLATES = ClassTemplates(["a photo of a {} texture."])
WEIGHTS = "open_clip_model.safetensors"
CPU = torch.device("cpu")
N, C = 300, len(CLASSNAMES)


def training(folder, number, flags=(), fold=NO_FOLD, drawn=()):
    """A training whose weights are those of the demo's CLIP times a number."""
    clip = clips.load(f"local-dir:{DEMO_CLIP}", None, CPU)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.mul_(number)
    folder = folder / f"{number}"
    classes = Classifier.of(torch.eye(C, clip.width))
    clips.save_finetuned(clip, classes, CLASSNAMES, TEMPLATES, folder / "model")
    empty = {name: [] for name in tables.HISTORY.names}
    metadata = records.training_metadata(flags=list(flags), drawn=list(drawn))
    tables.write(str(folder / "history.parquet"), empty, tables.HISTORY, metadata)
    return TrainingResult(str(folder / "model"), str(folder / "history.parquet"), fold)


class Inputs:
    """The index of 300 training images with fused labels."""

    def __init__(self, folder):
        self.folder = folder
        files = write_pictures(folder, N)
        colours = [np.asarray(Image.open(file)).mean(axis=(0, 1)) for file in files]
        self.labels = np.argmax(colours, axis=1)  # which colour there is most of
        self.index = write_index(
            folder / "images.parquet", files, ["train"] * N, [0] * N, CLASSNAMES
        )
        self.ids = tables.read(self.index)["image_id"].to_pylist()

    def average(self, name, trainings, labels=None, checking=(), mixing=0.5):
        """The folder of a model's files, and its classes of training images that it did not see."""
        labels = self.labels if labels is None else labels
        folder = self.folder / name
        folder.mkdir()
        columns = {field.name: pa.nulls(N, field.type) for field in tables.FUSED_LABELS}
        columns |= {
            "image_id": self.ids,
            "fused_topk_labels": [[int(label)] for label in labels],
            "fused_topk_probabilities": [[1.0]] * N,
        }
        tables.write(folder / "labels", columns, tables.FUSED_LABELS)
        answers = {"answers": dict.fromkeys(checking, "woven"), "checking": [*checking]}
        write_record(folder / "report", records.fusion(classnames=CLASSNAMES, **answers))
        names = ("model", "history", "predictions", "metrics", "train_predictions")
        average_weights(
            *(self.index, str(DEMO_CLIP)),
            *(str(folder / "labels"), str(folder / "report"), trainings),
            **{f"{each}_output": str(folder / each) for each in names},
            **{"mixing": mixing, "precision": "bf16", "device": "cpu", "threads": 1},
            **{"dataset": "set", "method": "recommended", "seed": 0},
        )
        table = tables.read(folder / "train_predictions")
        columns = (table["image_id"].to_pylist(), table["prediction"].to_pylist())
        return folder, dict(zip(*columns, strict=True))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


def test_weights_are_on_the_way_from_the_pretrained_ones_to_the_mean(tmp_path, inputs):
    folds = [Fold(0.1, number) for number in range(3)]
    numbers = zip((0.8, 1.0, 1.5), folds, strict=True)
    trainings = [training(tmp_path, number, fold=fold) for number, fold in numbers]
    folder, left_out = inputs.average("half", trainings)
    start, found = load_file(DEMO_CLIP / WEIGHTS), load_file(folder / "model" / WEIGHTS)
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale"):
        torch.testing.assert_close(found[name], 1.05 * start[name].float())
    history = tables.read_metadata(folder / "history", TrainingMetadata)
    assert (history.flags, history.averaged) == (["ours"], 3)
    metrics = read_object(folder / "metrics")
    assert (metrics["flags"], metrics["images"]) == (["ours"], N)
    assert left_out.keys() == {
        inputs.ids[row]
        for fold in folds
        for row in np.flatnonzero(holdout.left_out(inputs.ids, fold))
    }


def test_each_model_is_read_once(tmp_path, inputs, monkeypatch):
    read, load = [], clips.load

    def noted_file(path):
        read.append(Path(path).parent)
        return load_file(path)

    def noted_model(model, *more):
        read.append(Path(model.removeprefix("local-dir:")))
        return load(model, *more)

    monkeypatch.setattr(stage, "load_file", noted_file)
    monkeypatch.setattr(clips, "load", noted_model)
    trainings = [training(tmp_path, number) for number in (0.9, 1.1)]
    read.clear()  # what wrote them
    inputs.average("once", trainings)
    models = [Path(each.model) for each in trainings]
    assert sorted(read) == sorted([DEMO_CLIP, *models])


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_the_classifier_is_a_discriminant_of_the_features_by_the_fused_labels(
    tmp_path, inputs, mixing
):
    """Of the pretrained features and of the trained ones."""
    labels = inputs.labels
    trained = training(tmp_path, 1.1)
    folder, _ = inputs.average(f"end {mixing}", [trained], mixing=mixing)
    clip = clips.load(f"local-dir:{trained.model if mixing else DEMO_CLIP}", None, CPU)
    paths = tables.read(inputs.index)["path"].to_pylist()
    features = encode_files(clip, paths, 1)[:].double().numpy()
    # Fisher's: means of the classes, and the covariance within them.
    opened = clips.load_finetuned(folder / "model", CPU)
    means = np.stack([features[c == labels].mean(axis=0) for c in range(C)])
    within = np.mean([np.outer(x, x) for x in features - means[labels]], axis=0)
    within = 0.6 * within * 128 / np.trace(within) + 0.4 * np.eye(128)
    about = means - features.mean(axis=0)
    fisher = np.linalg.solve(within, about.T).T
    fisher /= np.sqrt((fisher * about).sum(axis=1))[:, None]
    found = opened.classifier
    scale = float(found.weights.norm() / np.linalg.norm(fisher))
    np.testing.assert_allclose(found.weights, scale * fisher, rtol=1e-2, atol=1e-3 * scale)
    centre = fisher @ features.mean(axis=0)
    np.testing.assert_allclose(found.bias, -scale * centre, rtol=1e-2)


def test_no_image_is_classified_by_what_learned_its_label(tmp_path, inputs):
    fold = Fold(0.1, 0)
    trained = training(tmp_path, 1.2, fold=fold)
    is_out = holdout.left_out(inputs.ids, fold)
    _, left_out = inputs.average("true", [trained])
    for name, changes, is_same in (("own", is_out, True), ("others", ~is_out, False)):
        labels = np.where(changes, (inputs.labels + 1) % C, inputs.labels)
        _, found = inputs.average(name, [trained], labels)
        assert (found == left_out) == is_same


def test_answers_that_check_teach_nothing_and_their_images_compare_models(tmp_path, inputs):
    checking = inputs.ids[:40]
    trained = training(tmp_path, 1.2, drawn=checking)
    _, predicted = inputs.average("checked", [trained], checking=checking)
    assert [*predicted] == checking
    is_checking = np.isin(inputs.ids, checking)
    labels = np.where(is_checking, (inputs.labels + 1) % C, inputs.labels)
    assert inputs.average("answered", [trained], labels, checking)[1] == predicted


def test_a_collapsed_training_has_no_part_unless_all_collapsed(tmp_path, inputs):
    sound = training(tmp_path, 1.0, fold=Fold(0.1, 0))
    collapsed = training(tmp_path, 1.5, ("ours", "collapsed"), fold=Fold(0.1, 1))
    folder, left_out = inputs.average("one", [collapsed, sound])
    start, found = load_file(DEMO_CLIP / WEIGHTS), load_file(folder / "model" / WEIGHTS)
    torch.testing.assert_close(found["logit_scale"], start["logit_scale"].float())
    is_out = holdout.left_out(inputs.ids, sound.fold)
    assert [*left_out] == [inputs.ids[row] for row in np.flatnonzero(is_out)]
    history = tables.read_metadata(folder / "history", TrainingMetadata)
    assert "collapsed" not in history.flags
    folder, _ = inputs.average("all", [collapsed])
    assert "collapsed" in tables.read_metadata(folder / "history", TrainingMetadata).flags
