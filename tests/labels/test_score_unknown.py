import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tiny import write_class_scores
from support.worlds import World, ZeroShotFiles

from latteclip.clip.classifier import load_detector
from latteclip.config.keys import UnknownSection
from latteclip.core import tables
from latteclip.core.tables import UnknownMetadata
from latteclip.labels.score_unknown import score_unknown


class Dataset(ZeroShotFiles):
    """The same with what the stage makes of them."""

    def run(self, share=0.1, class_scores=None, answers=None):
        """UNKNOWN and its metadata; the threshold of the detector is `threshold`."""
        outputs = self.path("unknown.parquet"), self.path("detector")
        score_unknown(
            *self.write(), UnknownSection(share=share), *outputs, class_scores, answers
        )
        found = tables.read(outputs[0])
        self.threshold = load_detector(outputs[1]).threshold
        return found, tables.read_metadata(outputs[0], UnknownMetadata)

    def bytes(self, **given):
        self.run(**given)
        return self.written("unknown.parquet", "detector")


@pytest.fixture
def dataset(tmp_path):
    """400 images of six classes, of which the last has no name: it is not in the list."""
    world = World.of(400)
    world.texts = world.texts[:5]
    found = Dataset(tmp_path, world)
    found.labels = [None if label == 5 else label for label in found.labels]
    return found


def test_the_score_is_the_distance_from_the_nearest_class_text(dataset):
    table, _ = dataset.run()
    features = dataset.world.features
    off = F.normalize(features - features[dataset.training].mean(dim=0), dim=1)
    wanted = 1 - (off @ dataset.world.texts.T).amax(dim=1)
    assert table["image_id"].to_pylist() == dataset.names
    np.testing.assert_allclose(table["score"].to_numpy(), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_training_images_is_called_unknown(dataset, share):
    table, _ = dataset.run(share)
    unknown = np.array(table["is_unknown"].to_pylist())
    assert unknown[dataset.training].sum() == int(share * len(dataset.training))
    assert (unknown == (table["score"].to_numpy() > dataset.threshold)).all()


def test_the_captioner_s_word_counts_where_it_scored_all_classes(dataset):
    """Where CLIP's best classes alone are options, an image may show another one."""
    asked = dataset.training[:200]
    outside = dataset.world.classes == 5
    total = torch.where(outside, 0.2, 0.8)[asked] - torch.arange(200) / 1e4
    shares = [0.6, 0.1, 0.1, 0.1, 0.1]
    lists = [[math.log(share * x) for share in shares] for x in total.tolist()]
    n, rest = len(dataset.training), len(dataset.training) - len(asked)
    ids = [dataset.names[i] for i in dataset.training]
    path = dataset.path("scores.parquet")
    before, _ = dataset.run(share=0.05)
    some = [one[:4] for one in lists] + [[]] * rest
    write_class_scores(path, ids, [[1, 3, 0, 2]] * 200 + [[]] * rest, some)
    table, _ = dataset.run(share=0.05, class_scores=path)
    assert table == before
    options = [[1, 3, 0, 2, 4]] * 200 + [[]] * rest
    write_class_scores(path, ids, options, lists + [[]] * rest)
    table, _ = dataset.run(share=0.05, class_scores=path)
    found = np.array(table["captioner_score"].to_pylist(), np.float64)
    np.testing.assert_allclose(found[asked], -np.log(total.double().numpy()), atol=1e-5)
    others = [i for i in range(400) if i not in asked]
    assert np.isnan(found[others]).all()
    marked = np.array(table["is_unknown"].to_pylist())
    assert found[asked][marked[asked]].min() > found[asked][~marked[asked]].max()
    assert marked[asked].sum() == int(0.05 * n)  # of all that are for training
    assert outside.numpy()[asked][marked[asked]].all()
    assert table["score"] == before["score"]
    assert (marked[others] == np.array(before["is_unknown"].to_pylist())[others]).all()


def test_none_of_these_calibrates_the_threshold(dataset):
    outside = (dataset.world.classes == 5).numpy()
    training = np.array(dataset.training)
    before = np.array(dataset.run(share=0.02)[0]["is_unknown"].to_pylist())
    asked = training[:60]
    table, described = dataset.run(share=0.02, answers=dataset.write_answers(asked))
    scores, unknown = (table[name].to_numpy() for name in ("score", "is_unknown"))
    none, known = asked[outside[asked]], asked[~outside[asked]]
    limit = (scores[none].mean() + scores[known].mean()) / 2
    assert dataset.threshold == pytest.approx(limit, abs=1e-6)
    assert described.answers == 60
    assert (unknown[asked] == outside[asked]).all()
    rest = np.setdiff1d(np.arange(400), asked)
    assert (unknown[rest] == (scores[rest] > dataset.threshold)).all()
    balanced = [
        found[rest][outside[rest]].mean() - found[rest][~outside[rest]].mean()
        for found in (before, unknown)
    ]
    assert balanced[1] > balanced[0] + 0.1


def test_an_image_to_which_a_person_gave_a_class_is_not_unknown(dataset):
    before = np.array(dataset.run()[0]["is_unknown"].to_pylist())
    known = [row for row in dataset.training if dataset.world.classes[row] != 5][:40]
    none = [row for row in dataset.training if dataset.world.classes[row] == 5][:4]
    assert before[known].any()
    table, described = dataset.run(answers=dataset.write_answers([*known, *none]))
    after = np.array(table["is_unknown"].to_pylist())
    assert not after[known].any() and after[none].all()
    assert not described.answers  # from which a threshold follows: four are too few
    rest = np.setdiff1d(np.arange(400), [*known, *none])
    assert (after[rest] == before[rest]).all()


def test_no_label_and_no_test_image_decides(dataset):
    before = dataset.bytes()
    dataset.labels = [None] * 400
    assert dataset.bytes() == before
    test = [i for i in range(400) if i % 4 == 3]
    dataset.world.features[test] = F.normalize(torch.randn(100, 24), dim=1)
    assert dataset.bytes()[1] == before[1]
    dataset.world.features[0] = -dataset.world.features[0]  # of a training image
    assert dataset.bytes()[1] != before[1]
