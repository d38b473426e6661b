import json
from pathlib import Path

import pytest
import torch
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.keys import ClipSection
from latteclip.core import holdout, tables
from latteclip.core.errors import UserError
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate import evaluate_classifier as stage

N, C, D = 14, 6, 5


class Dataset(ZeroShotFiles):
    """Features and a classifier with biases at random."""

    def __init__(self, folder):
        torch.manual_seed(0)
        super().__init__(
            folder, World(torch.arange(N) % C, torch.randn(N, D), torch.randn(C, D))
        )
        self.bias = torch.randn(C)
        self.best = (
            (self.world.features @ self.world.texts.T + self.bias).argmax(dim=1).tolist()
        )

    def run(self, votes=None, image_encoders=(), described=None):
        """Predictions of the test split, metrics, and predictions of training images."""
        path, outputs = (
            self.path("classifier"),
            ("predictions", "metrics", "train_predictions"),
        )
        head = Classifier.of(self.world.texts, self.bias)
        index, pseudo_labels, _ = self.write()
        save_classifier(path, head, described or self.described)
        stage.evaluate_classifier(
            *(index, pseudo_labels, path, votes),
            stage.ClassifierSettings(clip=ClipSection(model="m"), flags=["ours"]),
            *("set", "image_prototypes", 0),
            *map(self.path, outputs),
            self.path("model"),
            image_encoders,
        )
        table = tables.read(self.path(outputs[2]), tables.TRAIN_PREDICTIONS)
        metadata = tables.read_metadata(self.path(outputs[2]), ClassesMetadata)
        assert metadata.classnames == self.classnames
        held_out = [(row["image_id"], row["prediction"]) for row in table.to_pylist()]
        predictions = tables.read(self.path(outputs[0]), tables.PREDICTIONS)
        return predictions, json.loads(Path(self.path(outputs[1])).read_text()), held_out

    def write_votes(self, schema, ids, **heads):
        columns = {"image_id": ids, "vote": [[1 / C] * C] * len(ids), **heads}
        tables.write(self.path("votes"), columns, schema)
        return self.path("votes")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 3)
    monkeypatch.setattr(stage, "assemble_model", lambda *files: None)  # there is no CLIP
    return Dataset(tmp_path)


def test_features_of_other_models_stand_beside_clip_s(dataset):
    before, *_ = dataset.run()
    features, ids = dataset.world.features, dataset.names[::-1]  # another order of images
    columns = {"image_id": ids, "image_features": features.flip(0)[:, 2:].tolist()}
    tables.write(dataset.path("encoder"), columns, tables.IMAGE_FEATURES)
    dataset.world.features = features[:, :2]
    ids, heads = dataset.names[:3], {"head": [0] * 3, "joint_head": [3, 1, 2]}
    votes = dataset.write_votes(tables.VOTES_ENCODERS, ids, **heads)
    after, _, found = dataset.run(votes, [dataset.path("encoder")])
    assert after["prediction"] == before["prediction"]
    assert [prediction for _, prediction in found] == [3, 1, 2]


def test_test_images_and_held_out_images_get_their_best_class(dataset):
    predictions, metrics, found = dataset.run()
    tests, names, best = range(3, N, 4), dataset.names, dataset.best
    assert predictions["image_id"].to_pylist() == [names[i] for i in tests]
    assert predictions["prediction"].to_pylist() == [best[i] for i in tests]
    hits = [best[i] == dataset.labels[i] for i in tests]
    assert metrics["acc1"] == pytest.approx(sum(hits) / len(hits))
    assert metrics["flags"] == ["ours"]
    training = [names[i] for i in dataset.training]
    apart = [training[i] for i in holdout.held_out_for_choice(training).nonzero()[0]]
    assert len(apart) == 3
    class_of = dict(zip(names, best, strict=True))
    assert found == [(name, class_of[name]) for name in apart]


def test_a_classifier_of_votes_predicts_held_out_images_without_their_own_vote(dataset):
    ids = [dataset.names[6], dataset.names[2]]
    found = dataset.run(dataset.write_votes(tables.VOTES, ids, head=[4, 1]))[-1]
    assert found == list(zip(ids, [4, 1], strict=True))


def test_a_classifier_of_other_classes_is_refused(dataset):
    with pytest.raises(UserError, match="classifier"):
        dataset.run(described={"classnames": dataset.classnames[::-1]})
