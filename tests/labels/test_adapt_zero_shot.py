import pytest
import torch
import torch.nn.functional as F
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.core.errors import UserError
from latteclip.labels.adapt_zero_shot import adapt_zero_shot

NAMES = ("calibrated", "prototypes")


class Dataset(ZeroShotFiles):
    """The same with what the stage makes of them."""

    def run(self):
        """The two classifiers."""
        adapt_zero_shot(*self.write(), *map(self.path, NAMES))
        found = [load_classifier(self.folder / name) for name in NAMES]
        assert [described for _, described in found] == [self.described] * 2
        return [classifier for classifier, _ in found]

    def bytes(self):
        return self.run() and self.written(*NAMES)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path, World.of(400))


def test_the_bias_is_minus_the_mean_score_of_training_images(dataset):
    calibrated, _ = dataset.run()
    assert torch.equal(calibrated.weights, dataset.world.texts)
    scores = dataset.world.features @ dataset.world.texts.T
    means = scores[dataset.training].mean(dim=0)
    torch.testing.assert_close(calibrated.bias, -means)


def test_more_images_are_right_by_it(dataset):
    calibrated, prototypes = dataset.run()
    world, test = dataset.world, [i for i in range(400) if i % 4 == 3]
    zero_shot, found, by_images = (
        (classifier.scores(world.features[test]).argmax(1) == world.classes[test]).double().mean()
        for classifier in (Classifier.of(world.texts), calibrated, prototypes)
    )
    assert found > zero_shot + 0.05
    assert by_images > zero_shot + 0.05


def test_no_label_and_no_test_image_has_a_part_in_either(dataset):
    before = dataset.bytes()
    dataset.labels = [None] * 400
    test = [i for i in range(400) if i % 4 == 3]
    dataset.world.features[test] = F.normalize(torch.randn(100, 24), dim=1)
    assert dataset.bytes() == before
    dataset.world.features[0] = -dataset.world.features[0]  # of a training image
    assert all(one != other for one, other in zip(dataset.bytes(), before, strict=True))


@pytest.mark.parametrize(("n", "c"), [(1, 4), (30, 1)])
def test_little_is_enough(tmp_path, n, c, recwarn):
    dataset = Dataset(tmp_path, World.of(n, c))
    for classifier in dataset.run():  # loading refuses what is not finite
        assert classifier.weights.shape == (c, 24)
    assert not recwarn.list


def test_a_dataset_without_training_images_is_refused(dataset):
    dataset.splits = ["test"] * 400
    with pytest.raises(UserError, match=r"images\.parquet"):
        dataset.run()
