"""The stages that classify images by the model of a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support import records
from support.tiny import write_index, write_pictures
from support.worlds import World, ZeroShotFiles

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier, save_classifier
from latteclip.clip.model_files import CLASSIFIER
from latteclip.core import holdout, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.tables import ClassesMetadata, EncoderMetadata
from latteclip.evaluate import evaluate as stage
from latteclip.evaluate.evaluate_classifier import evaluate_classifier
from latteclip.evaluate.results import Audit, AuditedRun, RunFiles, accuracy_by_answers
from latteclip.labels.guarantees import Interval

CLASSNAMES = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture
def pictures(tmp_path):
    files = write_pictures(tmp_path / "pictures", 6)
    return files, ["test", "train", "test", "test", "val", "test"], [2, 0, 1, 6, 3, 2]


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(7, 128), dim=1)


@torch.no_grad()
def scores_of(clip, file, classifier):
    feature = clip.model.encode_image(clip.preprocess(Image.open(file))[None])
    return ((feature / feature.norm()) @ classifier.T)[0].tolist()


def evaluate(folder, index, clip, classifier):
    """Predictions and metrics of the stage, and the predictions for training images."""
    templates = ClassTemplates(["{}"])
    head = Classifier.of(classifier)
    clips.save_finetuned(clip, head, CLASSNAMES, templates, folder / "model")
    schema = pa.schema([("step", pa.int32()), ("loss", pa.float64())])
    metadata = records.training_metadata(flags=["ours"])
    tables.write(
        folder / "history", {"step": [0, 1], "loss": [0.5, 0.25]}, schema, metadata
    )
    names = ("predictions", "metrics", "train_predictions")
    outputs = {f"{name}_output": str(folder / name) for name in names}
    stage.evaluate(
        index,
        *(str(folder / name) for name in ("model", "history")),
        holdout.Fold(0.3, number=1),
        precision="bf16",
        dataset="set",
        method="latteclip",
        seed=4,
        **outputs,
        device="cpu",
        threads=1,
    )
    found = []
    for name in ("predictions", "train_predictions"):
        path = folder / name
        assert tables.read_metadata(path, ClassesMetadata).classnames == CLASSNAMES
        found.append(tables.read(path).to_pylist())
    return found[0], json.loads((folder / "metrics").read_text()), found[1]


def test_test_images_and_those_left_out_get_the_class_of_the_nearest_prototype(
    tmp_path, pictures, demo_clip, classifier, monkeypatch
):
    files, splits, labels = pictures
    monkeypatch.setattr(
        holdout, "left_out", lambda ids, fold: np.array([0, fold.number]) > 0
    )
    index = write_index(tmp_path / "images.parquet", files, splits, labels, CLASSNAMES)
    predictions, found, held_out = evaluate(tmp_path, index, demo_clip, classifier)
    tests = [i for i, split in enumerate(splits) if split == "test"]
    hits = []
    for row, i in zip(predictions, tests, strict=True):
        scores = scores_of(demo_clip, files[i], classifier)
        order = sorted(range(7), key=lambda c, s=scores: -s[c])
        assert (row["image_id"], row["label"]) == (Path(files[i]).name, labels[i])
        assert row["prediction"] == order[0]
        hits.append([order[0] == labels[i], labels[i] in order[:5]])
    scores = scores_of(demo_clip, files[4], classifier)
    wanted = {"image_id": Path(files[4]).name, "prediction": scores.index(max(scores))}
    assert held_out == [wanted]
    acc1, acc5 = np.mean(hits, axis=0)
    recalls = {labels[i]: [] for i in tests}
    for i, (hit, _) in zip(tests, hits, strict=True):
        recalls[labels[i]].append(hit)
    recall = np.mean([np.mean(own) for own in recalls.values()])
    wanted = {"dataset": "set", "method": "latteclip", "seed": 4, "flags": ["ours"]}
    wanted |= {"images": 4, "acc1": acc1, "acc5": acc5}
    assert found == wanted | {"mean_per_class_recall": pytest.approx(recall)}


# --- classifiers without training -----------------------------------------------------------------

N, C, D = 14, 6, 5


class Dataset(ZeroShotFiles):
    """Features and a classifier with biases at random."""

    def __init__(self, folder):
        torch.manual_seed(0)
        super().__init__(
            folder, World(torch.arange(N) % C, torch.randn(N, D), torch.randn(C, D))
        )
        self.bias = torch.randn(C)
        scores = self.world.features @ self.world.texts.T + self.bias
        self.best = scores.argmax(dim=1).tolist()

    def run(self, votes=None, *encoder):
        """Predictions of the test split, metrics, and predictions of training images."""
        path = self.path("classifier")
        outputs = ("predictions", "metrics", "train_predictions")
        head = Classifier.of(self.world.texts, self.bias)
        index, pseudo_labels, _ = self.write()
        save_classifier(path, head, self.described)
        for folder in ("clip", *encoder):
            (self.folder / folder).mkdir(exist_ok=True)
            (self.folder / folder / "weights").write_text(folder)
        shutil.rmtree(self.path("model"), ignore_errors=True)
        evaluate_classifier(
            *(index, pseudo_labels, path, votes, self.path("clip")),
            *("set", "image_prototypes", 0),
            *map(self.path, outputs),
            self.path("model"),
            [self.path(f"{name}.parquet") for name in encoder],
            [self.path(name) for name in encoder],
            ["ours"],
        )
        table = tables.read(self.path(outputs[2]))
        metadata = tables.read_metadata(self.path(outputs[2]), ClassesMetadata)
        assert metadata.classnames == self.classnames
        held_out = [(row["image_id"], row["prediction"]) for row in table.to_pylist()]
        predictions = tables.read(self.path(outputs[0]))
        return predictions, json.loads(Path(self.path(outputs[1])).read_text()), held_out

    def write_votes(self, ids, head, joint_head):
        columns = {"image_id": ids, "vote": [[1 / C] * C] * len(ids)}
        columns |= {"head": head, "joint_head": joint_head}
        tables.write(self.path("votes"), columns, tables.VOTES)
        return self.path("votes")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 3)
    return Dataset(tmp_path)


def test_features_of_other_models_stand_beside_clip_s(dataset):
    before, *_ = dataset.run()
    features, ids = dataset.world.features, dataset.names[::-1]  # another order of images
    columns = {"image_id": ids, "image_features": features.flip(0)[:, 2:].tolist()}
    metadata = EncoderMetadata("an encoder", D - 2)
    tables.write(dataset.path("encoder.parquet"), columns, tables.IMAGE_FEATURES, metadata)
    dataset.world.features = features[:, :2]
    votes = dataset.write_votes(dataset.names[:3], [0] * 3, [3, 1, 2])
    after, _, found = dataset.run(votes, "encoder")
    assert after["prediction"] == before["prediction"]
    assert [prediction for _, prediction in found] == [3, 1, 2]
    model = dataset.folder / "model"
    assert (model / "weights").read_text() == "clip"
    assert (model / "image_encoders" / "0" / "weights").read_text() == "encoder"
    _, described = load_classifier(model / CLASSIFIER)
    assert described["encoder_widths"] == [D - 2]


def test_test_images_and_held_out_images_get_their_best_class(dataset):
    predictions, metrics, found = dataset.run()
    tests, names, best = range(3, N, 4), dataset.names, dataset.best
    assert predictions["image_id"].to_pylist() == [names[i] for i in tests]
    assert predictions["prediction"].to_pylist() == [best[i] for i in tests]
    assert metrics["flags"] == ["ours"]
    training = [names[i] for i in dataset.training]
    apart = [training[i] for i in holdout.held_out_for_choice(training).nonzero()[0]]
    assert len(apart) == 3
    class_of = dict(zip(names, best, strict=True))
    assert found == [(name, class_of[name]) for name in apart]


# --- what a person's answers state about a run ----------------------------------------------------

RUN = ("flyp", 0)
IDS = [f"{number}.png" for number in range(40)]


@pytest.fixture
def predictions(tmp_path):
    """Of 30 checked images 24 were left out of the training, and 18 of these are right."""
    path = tmp_path / "train_predictions.parquet"
    predicted = np.repeat([0, 1], [18, 6]).astype(np.int32)
    columns = {"image_id": IDS[:24], "prediction": predicted}
    tables.write(path, columns, tables.TRAIN_PREDICTIONS, ClassesMetadata(["a", "b"]))
    return RunFiles(*RUN, "", str(path))


def report(n):
    return records.fusion(answers=dict.fromkeys(IDS[:n], "a"), checking=IDS[:n])


def test_checks_of_labels_are_checks_of_a_model_that_did_not_learn_from_them(predictions):
    found, asking = accuracy_by_answers(predictions, report(30), None)
    assert (found.value, found.n, asking) == (0.75, 24, "teach")
    assert found.low < 0.6 < 0.85 < found.high
    for few in (report(9), records.fusion()):
        assert accuracy_by_answers(predictions, few, None) == (None, "teach")


def test_an_audit_of_the_run_comes_first(predictions):
    accuracy = Interval(0.6, 0.5, 0.7, 80)
    run = AuditedRun(*RUN, accuracy, [])
    audit = Audit("d", "test", 500, 90, "", [run])
    found = accuracy_by_answers(predictions, report(30), audit)
    assert found == (accuracy, "audit")
