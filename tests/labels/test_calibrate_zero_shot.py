import logging

import pytest
import torch
import torch.nn.functional as F
from support.witnesses import SCALE, World
from support.zero_shot_files import ZeroShotFiles

from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.core.errors import UserError
from latteclip.labels.calibrate_zero_shot import calibrate_zero_shot


class Dataset(ZeroShotFiles):
    """The same with what the stage makes of them."""

    def run(self):
        """The two classifiers."""
        names = ("calibrated", "prototypes")
        calibrate_zero_shot(*self.write(), *map(self.path, names))
        return [self.read(name) for name in names]

    def bytes(self):
        """The two files."""
        self.run()
        return [(self.folder / name).read_bytes() for name in ("calibrated", "prototypes")]

    def read(self, name):
        classifier, described = load_classifier(self.folder / name)
        assert described == self.described
        return classifier


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path, World.of(400))


def test_the_bias_is_minus_the_mean_score_of_training_images(dataset, caplog):
    with caplog.at_level(logging.INFO, "latteclip"):
        calibrated, _ = dataset.run()
    assert torch.equal(calibrated.weights, dataset.world.texts)
    scores = dataset.world.features @ dataset.world.texts.T
    means = scores[dataset.training].mean(dim=0)
    torch.testing.assert_close(calibrated.bias, -means)
    assert "Class means of 300 images are off 6 classes" in caplog.text
    assert f"biases of {SCALE * means.std().item():.2f} logits" in caplog.text


def test_more_images_are_right_by_it(dataset):
    calibrated, prototypes = dataset.run()
    world, test = dataset.world, [i for i in range(400) if i % 4 == 3]
    zero_shot, found, by_images = (
        (classifier.scores(world.features[test]).argmax(1) == world.classes[test]).double().mean()
        for classifier in (Classifier.of(world.texts), calibrated, prototypes)
    )
    assert found > zero_shot + 0.05
    assert by_images > zero_shot + 0.05


def test_test_images_have_no_part_in_either(dataset):
    before = dataset.bytes()
    test = [i for i in range(400) if i % 4 == 3]
    dataset.world.features[test] = F.normalize(torch.randn(100, 24), dim=1)
    assert dataset.bytes() == before
    dataset.world.features[0] = -dataset.world.features[0]  # of a training image
    assert all(one != other for one, other in zip(dataset.bytes(), before, strict=True))


def test_an_image_is_classified_by_itself(dataset):
    for classifier in dataset.run():
        together = classifier.scores(dataset.world.features)
        alone = torch.cat([classifier.scores(x[None]) for x in dataset.world.features])
        torch.testing.assert_close(alone, together)


def test_no_label_is_read(dataset):
    before = dataset.bytes()
    dataset.labels = [None] * 400
    assert dataset.bytes() == before


def test_images_that_are_all_alike_leave_the_class_texts(dataset):
    dataset.world.features = dataset.world.features[:1].repeat(400, 1)
    calibrated, prototypes = dataset.run()
    scores = calibrated.scores(dataset.world.features)
    torch.testing.assert_close(scores, torch.zeros(400, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(prototypes.weights, calibrated.weights)
    torch.testing.assert_close(prototypes.bias, calibrated.bias)


@pytest.mark.parametrize(("n", "c"), [(1, 4), (2, 4), (30, 1)])
def test_little_is_enough(tmp_path, n, c, recwarn):
    dataset = Dataset(tmp_path, World.of(n, c))
    for classifier in dataset.run():  # loading refuses what is not finite
        assert classifier.weights.shape == (c, 24)
    assert not recwarn.list


def test_a_dataset_without_training_images_is_refused(dataset):
    dataset.splits = ["test"] * 400
    with pytest.raises(UserError, match="has no training image"):
        dataset.run()


def test_class_texts_of_other_classes_are_refused(dataset):
    dataset.described["classnames"] = ["x", *dataset.classnames[1:]]
    with pytest.raises(UserError, match="of other classes"):
        dataset.run()
