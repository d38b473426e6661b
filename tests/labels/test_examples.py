"""Examples: images of known classes that are not in the dataset."""

import pytest
import torch
from support.image_folders import images
from support.tiny import DEMO_CLIP, write_class_scores, write_index
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import ExamplesMetadata
from latteclip.labels.encode_examples import ExamplesSettings, encode_examples
from latteclip.labels.fuse_labels import FusionSettings, fuse_labels
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.labels.voters.base import VoterTable

SHOTS = 3
INFERENCE = InferenceSection(batch_size=4)
OUTPUTS = ("out.parquet", "out.json", "classifier", "votes.parquet", "voters.parquet")


class Dataset(ZeroShotFiles):
    """Images without captions, whose class texts say little, and examples of each class."""

    def __init__(self, folder):
        world = World.of(600 + 6 * SHOTS, text_noise=0.45)
        shown = [(world.classes == k).nonzero()[-SHOTS:, 0] for k in range(world.n_classes)]
        self.shown = torch.cat(shown)
        rest = torch.ones(len(world.classes), dtype=torch.bool)
        rest[self.shown] = False
        self.examples = world.features[self.shown]
        self.example_labels = world.classes[self.shown]
        super().__init__(
            folder, World(world.classes[rest], world.features[rest], world.texts)
        )

    def write_examples(self, features):
        path = self.path("examples.parquet")
        columns = {
            "path": [f"examples/{number}.jpg" for number in range(len(features))],
            "classname": [self.classnames[k] for k in self.example_labels],
            "image_features": tables.list_column(features.numpy()),
        }
        metadata = ExamplesMetadata(["m"], [features.shape[1]])
        tables.write(path, columns, tables.EXAMPLES, metadata)
        return path

    def run(self, **more):
        ids = [self.names[row] for row in self.training]
        nothing = [[] for _ in ids]
        scores = write_class_scores(self.path("scores.parquet"), ids, nothing, nothing)
        settings = FusionSettings(
            clip=ClipSection(model="m", pretrained=None), inference=INFERENCE
        )
        fuse_labels(
            *self.write(),
            settings,
            *(self.path(name) for name in OUTPUTS),
            voters_files=[VoterTable("lmm", "likelihood", "lmm", scores, "lmm")],
            device="cpu",
            threads=1,
            **more,
        )
        return tables.read(self.path("out.parquet"), tables.FUSED_LABELS)

    def right(self, table, column):
        labels = torch.tensor(table[column].to_pylist())
        return (labels == self.world.classes[self.training]).double().mean().item()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(tmp_path_factory.mktemp("examples"))


def test_three_examples_a_class_beat_zero_shot_without_captions(dataset):
    zero_shot = dataset.right(dataset.run(), "fused_label")
    table = dataset.run(examples_path=dataset.write_examples(dataset.examples))
    assert dataset.right(table, "adapted_label") == zero_shot < 0.9
    assert dataset.right(table, "fused_label") > zero_shot + 0.05
    assert read_fusion_report(dataset.path("out.json")).examples == 6 * SHOTS


def test_no_table_has_an_example(dataset):
    dataset.run(examples_path=dataset.write_examples(dataset.examples))
    ids = [dataset.names[row] for row in dataset.training]
    for name, schema in (
        ("out.parquet", tables.FUSED_LABELS),
        ("voters.parquet", tables.VOTER_LABELS),
    ):
        found = tables.read(dataset.path(name), schema)["image_id"].to_pylist()
        assert found == ids
    judges = tables.read(dataset.path("votes.parquet"), tables.VOTES)
    assert set(judges["image_id"].to_pylist()) <= set(ids)


def test_examples_count_beside_answers(dataset):
    rows = dataset.training[:40]
    answers = dataset.write_answers(rows, drawn=rows[20:])
    examples = dataset.write_examples(dataset.examples)
    dataset.run(examples_path=examples, answers_path=answers)
    report = read_fusion_report(dataset.path("out.json"))
    assert len(report.answers.images) == 40
    assert report.answers.checked.answers == 20


def test_examples_of_another_model_are_refused(dataset):
    path = dataset.write_examples(dataset.examples)
    columns = tables.read(path, tables.EXAMPLES)
    tables.write(path, columns, tables.EXAMPLES, ExamplesMetadata(["other"], [24]))
    with pytest.raises(UserError, match=r"examples\.parquet"):
        dataset.run(examples_path=path)


def test_examples_are_encoded_and_a_broken_one_is_named(tmp_path):
    shown = tmp_path / "examples"
    images(shown, "cat/a.jpg", "cat/b.jpg", "dog/c.jpg")
    index = tmp_path / "images.parquet"
    write_index(index, ["x.jpg"], ["train"], [None], ["cat", "dog"])
    clip = ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None)
    settings = ExamplesSettings(
        examples=str(shown),
        classname_replace={},
        clip=clip,
        image_encoders=[clip.model],
        inference=INFERENCE,
    )
    output = tmp_path / "examples.parquet"

    def run():
        encode_examples(str(index), settings, str(output), device="cpu", threads=1)

    run()
    table = tables.read(output, tables.EXAMPLES)
    assert table["classname"].to_pylist() == ["cat", "cat", "dog"]
    width = len(table["image_features"][0])
    assert tables.read_metadata(output, ExamplesMetadata).widths == [width // 2] * 2
    output.unlink()
    (shown / "dog" / "d.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"d\.jpg"):
        run()
    assert not output.exists()
