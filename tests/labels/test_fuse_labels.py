"""Stages that label images: what they write, and what has no part in it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.image_folders import images
from support.tiny import DEMO_CLIP, write_class_scores, write_index
from support.worlds import World, ZeroShotFiles

from latteclip.clip.classifier import load_classifier
from latteclip.clip.encode_images import ExamplesSettings, encode_examples
from latteclip.config.keys import ClipSection
from latteclip.core import holdout, tables
from latteclip.core.answers import Answer
from latteclip.core.errors import UserError
from latteclip.core.tables import EncoderMetadata, VotesMetadata
from latteclip.labels.fuse_labels import LEAKED, adapt_zero_shot, fuse_labels, labels_right
from latteclip.labels.fusion_report import UNCHECKED, read_fusion_report
from latteclip.labels.label_inputs import LabelFiles, LabellerTable
from latteclip.labels.votes import Answers

OUTPUTS = ("out.parquet", "out.json", "classifier", "votes.parquet")
C = 6


class Dataset(ZeroShotFiles):
    """Images of which every fourth is a test image, and labellers that err at random."""

    def __init__(self, folder, n=240, **options):
        super().__init__(folder, World.of(n, C, **options))
        self.ids = [self.names[i] for i in self.training]
        self.true = self.world.classes[self.training].numpy()
        self.labellers = [self.labeller("words", column="caption")]
        self.encoders = []

    def labeller(self, name, right=0.8, silent=0, seed=0, **options):
        """A labeller with a table of votes, each for one class."""
        rng = np.random.default_rng(seed)
        other = rng.integers(C, size=len(self.true))
        voted = np.where(rng.random(len(self.true)) < right, self.true, other)
        return self.labeller_of(name, voted, silent, **options)

    def labeller_of(self, name, voted, silent=0, **options_of_table):
        options = [[] if row < silent or c < 0 else [int(c)] for row, c in enumerate(voted)]
        logs = [[0.0] * len(one) for one in options]
        path = write_class_scores(self.folder / f"{name}.parquet", self.ids, options, logs)
        return LabellerTable(name, "captions", path, **options_of_table)

    def adapt(self):
        path = self.path("adapted")
        adapt_zero_shot(LabelFiles(*self.write()), path)
        return path

    def run(self, joint=None, **files):
        """The columns and the report that are written."""
        outputs = [self.path(name) for name in OUTPUTS]
        fuse_labels(
            LabelFiles(*self.write(), adapted=self.adapt(), **files),
            self.labellers,
            *outputs,
            image_encoders_paths=self.encoders,
            encoders_prototypes_output=joint,
        )
        table = tables.read(outputs[0])
        assert table["image_id"].to_pylist() == self.ids
        return table.to_pydict(), read_fusion_report(outputs[1])

    def votes(self):
        path = self.path("votes.parquet")
        return tables.read(path), tables.read_metadata(path, VotesMetadata)

    def right(self, labels):
        return float((np.array(labels) == self.true).mean())


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def test_without_labellers_class_texts_and_images_label(dataset):
    dataset.labellers = []
    columns, _ = dataset.run()
    scores = dataset.world.zero_shot()[dataset.training]
    zero_shot = dataset.right(scores.argmax(dim=1))
    assert dataset.right(columns["fused_label"]) >= zero_shot
    assert columns["labeller_labels"] == [[]] * len(dataset.true)
    votes, about = dataset.votes()
    assert len(votes) == len(dataset.true)  # an audit asks about the classifier as well
    assert about.unfit


# --- labels --------------------------------------------------------------------------------------


def test_labels_are_better_than_votes_and_zero_shot(tmp_path):
    dataset = Dataset(tmp_path, noise=0.35)
    columns, report = dataset.run()
    right = dataset.right(columns["fused_label"])
    for name in ("caption", "adapted", "image"):
        assert right >= dataset.right(columns[f"{name}_label"])
    assert columns["lmm_label"] == columns["lmm_confidence"] == [None] * len(dataset.ids)
    adapted, _ = load_classifier(dataset.path("adapted"))
    features = dataset.world.features[dataset.training]
    assert columns["adapted_label"] == adapted.scores(features).argmax(1).tolist()
    [words] = report.labellers
    assert (words.table, words.votes) == ("words.parquet", 180)
    assert (words.weight > 0, report.zero_shot.votes, report.reason) == (True, 180, "")
    head, described = load_classifier(dataset.path("classifier"))
    assert described == dataset.described
    assert dataset.right(head.scores(features).argmax(1)) > 0.8


def test_each_labeller_keeps_its_labels_and_an_image_may_have_no_vote(dataset):
    dataset.labellers += [dataset.labeller("more", 0.7, silent=60, seed=1)]
    columns, report = dataset.run()
    labels = np.array(columns["labeller_labels"])
    assert [one.name for one in report.labellers] == ["words", "more"]
    assert labels[:, 0].tolist() == columns["caption_label"]
    assert (labels[:60, 1] == -1).all() and (labels[60:, 1] >= 0).all()
    assert [one.votes for one in report.labellers] == [180, 120]
    dataset.labellers = [dataset.labeller("words", silent=30, column="caption")]
    columns, report = dataset.run()
    assert columns["caption_label"][:30] == columns["adapted_label"][:30]
    assert columns["caption_confidence"][:31] == [0] * 30 + [1]
    assert report.labellers[0].votes == 150 and None not in columns["fused_label"]


def test_a_class_that_nothing_but_its_text_names_has_no_label(dataset):
    """A labeller has a vote about most images, and never names the last class."""
    last = dataset.true == C - 1
    dataset.labellers = [dataset.labeller_of("words", np.where(last, -1, dataset.true))]
    columns, report = dataset.run()
    assert C - 1 not in columns["fused_label"]
    assert report.without_evidence == [dataset.classnames[C - 1]]
    row = dataset.training[int(np.flatnonzero(last)[0])]
    columns, report = dataset.run(answers=dataset.write_answers([row]))
    assert C - 1 in columns["fused_label"] and report.without_evidence == []


def test_labels_that_images_cannot_check_have_the_confidence_of_labellers(tmp_path):
    """A model of probability 0.66 and class texts, of which images say nothing."""
    dataset = Dataset(tmp_path, noise=50)
    options = [[int(c), int(c + 1) % C] for c in dataset.true]
    logs = [np.log([0.66, 0.34]).tolist()] * len(options)
    path = write_class_scores(tmp_path / "mine.parquet", dataset.ids, options, logs)
    dataset.labellers = [LabellerTable("mine", "file", path)]
    columns, report = dataset.run()
    assert 0.4 < np.mean(columns["fused_confidence"]) < 0.7
    assert max(columns["fused_confidence"]) < 0.9
    assert not report.is_checked and UNCHECKED in report.sentences()


def test_no_label_of_an_image_and_no_test_image_has_a_part_in_it(dataset):
    dataset.run()
    before = dataset.written(*OUTPUTS, "adapted")
    dataset.labels = [None] * 240
    test = [i for i in range(240) if i % 4 == 3]
    dataset.world.features[test] = dataset.world.features[test].roll(1, dims=1)
    dataset.run()
    assert dataset.written(*OUTPUTS, "adapted") == before
    dataset.world.features[0] = -dataset.world.features[0]  # of a training image
    dataset.run()
    assert dataset.written(*OUTPUTS, "adapted") != before


def test_features_of_other_encoders_help(tmp_path):
    dataset = Dataset(tmp_path, noise=0.9)
    draw = torch.Generator().manual_seed(50)
    centres = F.normalize(torch.randn(C, 16, generator=draw), dim=1)
    noise = torch.randn(len(dataset.names), 16, generator=draw)
    other = F.normalize(centres[dataset.world.classes] + 0.3 * noise, dim=1)
    path, prototypes = dataset.path("encoder.parquet"), dataset.path("joint")
    ids = dataset.names[::-1]
    columns = {"image_id": ids, "image_features": tables.list_column(other.flip(0).numpy())}
    tables.write(path, columns, tables.IMAGE_FEATURES, EncoderMetadata("an encoder", 3))
    alone, _ = dataset.run()
    dataset.encoders = [path]
    table, report = dataset.run(prototypes)
    assert dataset.right(table["fused_label"]) > dataset.right(alone["fused_label"])
    assert report.image_encoders == ["encoder.parquet"]
    joint, described = load_classifier(prototypes)
    assert described["image_encoders"] == ["an encoder"]
    both = torch.cat([dataset.world.features, other], dim=1)[dataset.training]
    judged = dataset.votes()[0]["joint_head"].to_numpy()
    assert (joint.scores(both).argmax(1).numpy() == judged).mean() > 0.9


def test_near_duplicates_do_not_confirm_the_votes_about_each_other(tmp_path):
    """Images come in bursts of four, about which a labeller has one vote."""
    dataset = Dataset(tmp_path, 480)
    one = World.of(120, C, noise=0.35)
    every = torch.arange(480) // 4
    dataset.world = World(one.classes[every], one.features[every], one.texts)
    dataset.true = dataset.world.classes[dataset.training].numpy()
    rng = np.random.default_rng(1)
    voted = np.where(rng.random(120) < 0.7, one.classes.numpy(), rng.integers(C, size=120))
    dataset.labellers = [dataset.labeller_of("words", voted.repeat(3))]
    alone, _ = dataset.run()
    duplicates = dataset.path("duplicates.parquet")
    columns = {"image_id": dataset.names, "set": pa.array(every.numpy(), pa.int32())}
    tables.write(duplicates, columns, tables.DUPLICATES)
    together, _ = dataset.run(duplicates=duplicates)
    right = dataset.right(alone["fused_label"])
    assert dataset.right(together["fused_label"]) > right + 0.1


# --- votes, by which classifiers are compared ----------------------------------------------------


def test_some_images_with_votes_compare_classifiers(dataset, monkeypatch):
    dataset.labellers = [dataset.labeller("words", silent=40)]
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 100)
    dataset.run()
    chosen = holdout.held_out_for_choice(dataset.ids).nonzero()[0]
    table, described = dataset.votes()
    assert table["image_id"].to_pylist() == [dataset.ids[row] for row in chosen]
    shares = np.array(table["vote"].to_pylist())
    np.testing.assert_allclose(shares.sum(axis=1), chosen >= 40, atol=1e-5)
    has_vote = chosen >= 40
    assert (shares.argmax(axis=1) == dataset.true[chosen])[has_vote].mean() > 0.6
    assert described.unfit == ""


def test_votes_of_captions_that_read_the_labels_compare_nothing(dataset):
    dataset.labellers = [dataset.labeller("words", leaked=True)]
    dataset.run()
    assert dataset.votes()[1].unfit == LEAKED


# --- answers -------------------------------------------------------------------------------------


def test_labels_follow_answers_and_are_checked_by_them(dataset):
    none = dataset.ids[50]
    rows = dataset.training[:40]
    answers = (Answer(none, "none"), Answer(dataset.ids[60], "unsure"))
    path = dataset.write_answers(rows, *answers, drawn=rows[30:])
    columns, report = dataset.run(answers=path)
    assert columns["fused_label"][:40] == dataset.true[:40].tolist()
    assert columns["fused_confidence"][:40] == [1.0] * 40
    assert columns["fused_confidence"][50] == 0
    assert len(report.answers) == 41 and report.answers[none] is None
    assert report.checking == dataset.ids[30:40]
    # Of n labels 30 are right by answers, one is of no class, one is not known, and the answers
    # correct those that they check.
    n, hits = len(dataset.ids), sum(right for _, right in report.checks["labels"])
    found = report.labels_right
    assert found.n == 10
    assert found.value == pytest.approx((30 + 10 - hits + hits / 10 * (n - 31)) / n)
    assert found.low <= found.value <= found.high
    assert len(report.checks["image_prototypes"]) == 10


@pytest.mark.parametrize("n", [1, 180])
@pytest.mark.parametrize("kind", ["class", "none", "one class", "drawn"])
def test_any_number_of_answers_of_any_kind_ends_in_labels(dataset, n, kind):
    classes = {"none": [None] * n, "one class": [dataset.classnames[0]] * n}
    named = classes.get(kind, [dataset.classnames[c] for c in dataset.true[:n]])
    phases = ["check"] * n if kind == "drawn" else ["teach", "check"] * n
    answers = [
        Answer(name, "class" if c else "none", c, phase)
        for name, c, phase in zip(dataset.ids, named, phases, strict=False)
    ]
    columns, report = dataset.run(answers=dataset.write_answers([], *answers))
    assert len(report.answers) == n
    if kind == "none":
        assert columns["fused_confidence"][:n] == [0] * n
    else:
        assert [dataset.classnames[c] for c in columns["fused_label"][:n]] == named
    if right := report.labels_right:
        assert 0 <= right.low <= right.value <= right.high <= 1


def test_answers_that_are_empty_change_no_byte(dataset):
    before = dataset.run() and dataset.written(*OUTPUTS)
    answers = dataset.write_answers([])
    assert dataset.run(answers=answers) and dataset.written(*OUTPUTS) == before


def rows_of(taught, drawn, none=0):
    """Answers about the first rows: class 0, and of no class for the first of those taught."""
    shares = np.zeros((taught + drawn, 3))
    shares[none:, 0] = 1
    return Answers(np.arange(len(shares)), shares, np.arange(len(shares)) >= taught)


def test_cannot_tell_and_none_of_these_are_no_right_labels():
    """Of 420 labels, half of the 360 are right of which 60 checks were drawn, and no other."""
    labels = np.arange(60) % 2
    for none, unsure in ((0, 60), (60, 0)):
        answers = replace(rows_of(none, 60, none), unsure_chosen=unsure)
        found = labels_right(420, answers, labels)
        assert found.low <= (180 + 30) / 420 <= found.value + 0.1
        assert found.value < 0.6
    known = labels_right(420, rows_of(60, 60), labels)
    assert known.value == pytest.approx((60 + 180 + 30) / 420)


# --- examples ------------------------------------------------------------------------------------

SHOTS = 8


@pytest.fixture
def shown(tmp_path):
    """A dataset whose class texts say little, without votes, and examples of each class."""
    whole = World.of(600 + C * SHOTS, C, text_noise=0.45)
    chosen = torch.cat([(whole.classes == k).nonzero()[-SHOTS:, 0] for k in range(C)])
    rest = torch.ones(len(whole.classes), dtype=torch.bool)
    rest[chosen] = False
    dataset = Dataset(tmp_path, 600)
    dataset.world = World(whole.classes[rest], whole.features[rest], whole.texts)
    dataset.true = dataset.world.classes[dataset.training].numpy()
    dataset.labellers = [dataset.labeller_of("nobody", dataset.true, silent=600)]

    def write():
        features = whole.features[chosen]
        columns = {
            "path": [f"examples/{number}.jpg" for number in range(len(features))],
            "classname": [dataset.classnames[k] for k in whole.classes[chosen]],
            "image_features": tables.list_column(features.numpy()),
        }
        path = dataset.path("examples.parquet")
        tables.write(path, columns, tables.EXAMPLES)
        return path

    return dataset, write


def test_examples_beat_zero_shot_and_are_in_no_table(shown):
    dataset, write = shown
    before, _ = dataset.run()
    rows = dataset.training[:40]
    answers = dataset.write_answers(rows, drawn=rows[20:])
    after, report = dataset.run(examples=write())
    assert dataset.right(after["fused_label"]) > dataset.right(before["fused_label"]) + 0.03
    assert after["adapted_label"] == before["adapted_label"]
    assert report.examples == C * SHOTS
    _, report = dataset.run(examples=write(), answers=answers)
    assert len(report.answers) == 40 and report.labels_right.n == 20


def test_examples_are_encoded_once_and_a_broken_one_is_named(tmp_path, caplog):
    folder = tmp_path / "examples"
    images(folder, "cat/a.jpg", "cat/b.jpg", "dog/c.jpg")
    index = tmp_path / "images.parquet"
    write_index(index, ["x.jpg"], ["train"], [None], ["cat", "dog"])
    clip = ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None)
    settings = ExamplesSettings(
        examples_folder=str(folder),
        replacements={},
        clip=clip,
        encoders=[clip.model],
    )
    output = tmp_path / "examples.parquet"

    def run():
        store = str(tmp_path / "store")
        encode_examples(str(index), settings, store, str(output), device="cpu", threads=1)

    run()
    table = tables.read(output)
    assert table["classname"].to_pylist() == ["cat", "cat", "dog"]
    first = table["image_features"][0].as_py()
    assert first[: len(first) // 2] == first[len(first) // 2 :]  # by CLIP twice
    output.unlink()
    with caplog.at_level("INFO"):
        caplog.clear()
        run()
    assert caplog.text.count("Encoded 0 images") == 2  # they are in the store
    assert tables.read(output).equals(table)
    output.unlink()
    (folder / "dog" / "d.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"d\.jpg"):
        run()
    assert not output.exists()
