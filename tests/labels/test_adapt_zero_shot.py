import pytest
import torch
import torch.nn.functional as F
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.core.errors import UserError
from latteclip.labels.adapt_zero_shot import adapt_zero_shot

NAME = "adapted"


class Dataset(ZeroShotFiles):
    """The same with what the stage makes of them."""

    def run(self):
        """The classifier."""
        adapt_zero_shot(*self.write(), self.path(NAME))
        found, described = load_classifier(self.folder / NAME)
        assert described == self.described
        return found

    def bytes(self):
        return self.run() and self.written(NAME)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path, World.of(400))


def test_more_images_are_right_by_it(dataset):
    adapted = dataset.run()
    world, test = dataset.world, [i for i in range(400) if i % 4 == 3]
    zero_shot, found = (
        (classifier.scores(world.features[test]).argmax(1) == world.classes[test])
        .double()
        .mean()
        for classifier in (Classifier.of(world.texts), adapted)
    )
    assert found > zero_shot + 0.05


def test_no_label_and_no_test_image_has_a_part_in_it(dataset):
    before = dataset.bytes()
    dataset.labels = [None] * 400
    test = [i for i in range(400) if i % 4 == 3]
    dataset.world.features[test] = F.normalize(torch.randn(100, 24), dim=1)
    assert dataset.bytes() == before
    dataset.world.features[0] = -dataset.world.features[0]  # of a training image
    assert dataset.bytes() != before


@pytest.mark.parametrize(("n", "c"), [(1, 4), (30, 1)])
def test_little_is_enough(tmp_path, n, c, recwarn):
    found = Dataset(tmp_path, World.of(n, c)).run()  # loading refuses what is not finite
    assert found.weights.shape == (c, 24)
    assert not recwarn.list


def test_a_dataset_without_training_images_is_refused(dataset):
    dataset.splits = ["test"] * 400
    with pytest.raises(UserError, match=r"images\.parquet"):
        dataset.run()
