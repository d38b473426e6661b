import numpy as np
import pytest
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.core import tables
from latteclip.labels.rank_images import rank_images
from latteclip.labels.voters.base import FusionSettings

SETTINGS = FusionSettings.model_validate({"clip": {}, "inference": {}})


class Dataset(ZeroShotFiles):
    def run(self):
        """The table's columns."""
        files = self.write()
        output = self.path("gains")
        rank_images(*files, SETTINGS, output, device="cpu", threads=1)
        return tables.read(output, tables.EXPECTED_GAINS).to_pydict()


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path, World.of(400))


def test_wrong_labels_come_sooner_than_right_ones(dataset):
    columns = dataset.run()
    turns = np.array([len(columns["turn"]) if t is None else t for t in columns["turn"]])
    asked = sorted(t for t in columns["turn"] if t is not None)
    assert asked == list(range(len(asked)))
    gains = np.array(columns["gain"])
    assert (gains >= 0).all() and gains.sum() > 1
    train = dataset.training
    zero_shot = (dataset.world.features @ dataset.world.texts.T).argmax(dim=1)[train]
    is_wrong = (zero_shot != dataset.world.classes[train]).numpy()
    assert turns[is_wrong].mean() < turns[~is_wrong].mean() - 20
    assert [t is None for t in columns["turn"]] == [not gain for gain in gains]


def test_the_order_is_the_same_again_and_no_label_has_a_part_in_it(dataset):
    before = dataset.run()
    dataset.labels = [None] * 400
    assert dataset.run() == before
