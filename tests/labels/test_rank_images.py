import numpy as np
import pyarrow as pa
import pytest
from support.tiny import write_class_scores
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.core import tables
from latteclip.labels.rank_images import rank_images
from latteclip.labels.voters.base import FusionSettings

SETTINGS = FusionSettings.model_validate({"clip": {}, "inference": {}})


class Dataset(ZeroShotFiles):
    def run(self, **tables_of):
        """The table's columns."""
        files = self.write()
        output = self.path("gains")
        rank_images(*files, SETTINGS, output, **tables_of, device="cpu", threads=1)
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


def test_images_of_an_earlier_round_come_first_and_its_votes_count(dataset):
    before = dataset.run()
    first = [t is not None and t < 100 for t in before["turn"]]
    options, values = [], []
    for row, is_asked in zip(dataset.training, first, strict=True):
        label = int(dataset.world.classes[row])
        logs = [0.0 if c == label else -5.0 for c in range(len(dataset.classnames))]
        options.append(list(range(len(logs))) if is_asked else [])
        values.append(logs if is_asked else [])
    path = dataset.path("scores.parquet")
    write_class_scores(path, before["image_id"], options, values)
    mark_asked(path, first)
    after = dataset.run(scores_path=path)
    turns = [turn for turn, is_asked in zip(after["turn"], first, strict=True) if is_asked]
    assert sorted(turns) == list(range(sum(first)))
    gains, others = np.array(after["gain"]), ~np.array(first)
    assert (gains[first] == 0).all()
    assert not np.allclose(gains[others], np.array(before["gain"])[others], atol=0.01)


def mark_asked(path, first):
    """Give the images that were asked about the digest of a request."""
    table = tables.read(path, tables.CLASS_SCORES)
    digests = ["d" if is_asked else None for is_asked in first]
    place = table.schema.get_field_index("digest")
    table = table.set_column(place, "digest", pa.array(digests, pa.string()))
    tables.write(
        path, {name: table[name] for name in table.column_names}, tables.CLASS_SCORES
    )
