import numpy as np
import pyarrow as pa
import pytest
import torch
from support.tiny import write_class_scores
from support.worlds import World, generator
from support.zero_shot_files import ZeroShotFiles

from latteclip.core import tables
from latteclip.core.metadata import GainsMetadata
from latteclip.labels.label_sources import label_votes
from latteclip.labels.rank_images import RankSettings, rank_images
from latteclip.labels.voters import caption
from latteclip.labels.voters.base import Ballot


def settings(min_gain=0.0):
    sections = {"clip": {}, "inference": {}, "scores": {"min_gain": min_gain}}
    return RankSettings.model_validate(sections)


class Dataset(ZeroShotFiles):
    def run(self, name="gains", min_gain=0.0, **tables_of):
        """The table's columns."""
        files = self.write()
        output = self.path(name)
        rank_images(
            *files, settings(min_gain), output, **tables_of, device="cpu", threads=1
        )
        return tables.read(output, tables.EXPECTED_GAINS).to_pydict()

    def gains_metadata(self, name="gains"):
        return tables.read_metadata(self.path(name), GainsMetadata)


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
    assert turns[is_wrong].mean() < turns[~is_wrong].mean() - 10
    assert [t is None for t in columns["turn"]] == [not gain for gain in gains]


def test_the_order_is_the_same_again_and_no_label_has_a_part_in_it(dataset):
    before = dataset.run()
    dataset.labels = [None] * 400
    assert dataset.run() == before


@pytest.fixture
def answered(dataset):
    """A first round of right answers about 100 images: both tables, and which images it had."""
    before = dataset.run("first")
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
    dataset.round = {"scores_path": path, "gains_path": dataset.path("first")}
    return before, np.array(first)


def test_images_of_an_earlier_round_come_first_and_its_votes_count(dataset, answered):
    before, first = answered
    after = dataset.run(**dataset.round)
    turns = [turn for turn, is_asked in zip(after["turn"], first, strict=True) if is_asked]
    assert sorted(turns) == list(range(sum(first)))
    gains = np.array(after["gain"])
    assert (gains[first] == 0).all()
    assert not np.allclose(gains[~first], np.array(before["gain"])[~first], atol=0.01)
    for name in ("label", "doubt"):  # of the images that were asked about, as before
        values = np.array(after[name])[first]
        assert values.tolist() == np.array(before[name])[first].tolist()
    described = dataset.gains_metadata()
    wrong = np.array(before["label"]) != dataset.world.classes[dataset.training].numpy()
    assert described.answered == 100
    assert described.changed == pytest.approx(wrong[first].sum(), abs=5)
    assert described.expected == pytest.approx(gains.sum(), rel=1e-4)
    assert not described.is_enough


def test_nothing_more_is_asked_where_little_is_gained(dataset, answered):
    before, first = answered
    n = len(first)
    expected = np.array(dataset.run(**dataset.round)["gain"]).sum()
    more = dataset.run(min_gain=0.9 * expected / n, **dataset.round)
    assert sum(turn is not None for turn in more["turn"]) > first.sum()
    enough = dataset.run(min_gain=1.1 * expected / n, **dataset.round)
    assert [turn is not None for turn in enough["turn"]] == first.tolist()
    assert dataset.gains_metadata().is_enough
    # Without an answer nobody knows how little is gained.
    assert dataset.run(min_gain=1.0)["turn"] == before["turn"]


def damaged(labels, share, n_classes, seed):
    """Labels of which a share is another class."""
    draw = generator(seed)
    others = (
        labels + torch.randint(1, n_classes, labels.shape, generator=draw)
    ) % n_classes
    return torch.where(torch.rand(len(labels), generator=draw) < share, others, labels)


def test_scores_that_repeat_the_captions_do_not_count(tmp_path, monkeypatch):
    """Nothing tells how right either is, and the scores have the same errors and more."""
    dataset = Dataset(tmp_path, World.of(noise=1.0, text_noise=0.8))
    c = len(dataset.classnames)
    captions = damaged(dataset.world.classes[dataset.training], 0.25, c, seed=1)
    ballot = Ballot.of("captions", label_votes(captions, c))
    monkeypatch.setattr(caption, "vote", lambda path, voted: ballot)
    by_captions = dataset.run("by captions", captions_path="captions")
    labels = damaged(captions, 0.1, c, seed=2)
    is_asked = np.arange(len(labels)) % 3 > 0
    options = [[*range(c)] if asked else [] for asked in is_asked]
    values = [
        [0.0 if number == label else -5.0 for number in numbers]
        for label, numbers in zip(labels.tolist(), options, strict=True)
    ]
    scores = dataset.path("scores.parquet")
    write_class_scores(scores, by_captions["image_id"], options, values)
    mark_asked(scores, is_asked)
    earlier = {"scores_path": scores, "gains_path": dataset.path("by captions")}
    with_scores = dataset.run(captions_path="captions", **earlier)
    assert with_scores["label"] == by_captions["label"]
    assert with_scores["doubt"] == by_captions["doubt"]


def mark_asked(path, first):
    """Give the images that were asked about the digest of a request."""
    table = tables.read(path, tables.CLASS_SCORES)
    digests = ["d" if is_asked else None for is_asked in first]
    place = table.schema.get_field_index("digest")
    table = table.set_column(place, "digest", pa.array(digests, pa.string()))
    tables.write(
        path, {name: table[name] for name in table.column_names}, tables.CLASS_SCORES
    )
