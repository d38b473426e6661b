from pathlib import Path

import pyarrow as pa
import pytest
import torch
from support import records, tiny, trainings
from support.trainings import CLASSNAMES

from latteclip.core import holdout, tables
from latteclip.core.errors import UserError
from latteclip.labels.fusion_report import write_fusion_report
from latteclip.train import data as training_data
from latteclip.train.data import TrainingFiles
from latteclip.train.objectives.base import TokenizedTexts

LABELS = [2, 0, 2, 1, 0, 2, 1]
TRUE = [0, 0, 2, 1, 1, 2, 1]
FUSED = [2, 0, 2, 1, 0, 1, 1]


class Files(trainings.Inputs):
    """Seven training images with features, labels and captions."""

    def __init__(self, folder, true=TRUE):
        self.features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
        super().__init__(folder, LABELS, true=true, features=self.features)

    def fused_labels(self, drawn=()):
        """The files of fused labels, which answers about some drawn images check."""
        schema = tables.FUSED_LABELS
        columns = {field.name: pa.nulls(len(self.names), field.type) for field in schema}
        columns |= {"image_id": self.names, "fused_label": FUSED}
        columns["fused_confidence"] = [0.5] * len(self.names)
        labels, report = str(self.folder / "l.parquet"), str(self.folder / "l.json")
        tables.write(labels, columns, schema)
        write_fusion_report(report, records.fusion(checking=list(drawn)))
        return {"fused_labels": labels, "fusion_report": report}

    def read(self, labels="zero_shot", fold=holdout.NO_FOLD, **files):
        bank = TokenizedTexts(tiny.tiny_clip())
        read = training_data.read(
            TrainingFiles(self.index, self.labels, **files), "a {}.", labels, bank, fold
        )
        return read, list(bank.texts)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_images_drawn_to_check_labels_are_not_trained_on(files):
    drawn = files.names[1:3]
    data, _ = files.read("fused", **files.fused_labels(drawn))
    trained = [name for name in files.names if name not in drawn]
    assert [Path(path).name for path in data.paths] == trained
    assert data.drawn == drawn


def test_supervision_needs_every_label(tmp_path):
    assert Files(tmp_path).read("ground_truth")[0].labels.tolist() == TRUE
    files = Files(tmp_path, [*TRUE[:5], None, None])
    with pytest.raises(UserError, match=r"i\.parquet"):
        files.read("ground_truth")


def test_groups_have_their_most_frequent_class_and_other_classes_their_description(files):
    groups = files.groups(
        [[1, 0, 2, 5], [2, 6, 3, 0]], ["a", "b"]
    )  # of classes 0222 and 2112
    data, texts = files.read(group_captions=groups)
    assert [texts[i] for i in data.texts.groups] == ["a", "b", "a striped.", "a dotted."]
    # The first of equally frequent ones.
    assert data.texts.group_labels.tolist() == [2, 2, 0, 1]


def test_left_out_images_and_what_shows_them_are_not_trained_on(files, monkeypatch):
    monkeypatch.setattr(holdout, "MIN_LEFT_OUT", 1)
    fold = holdout.Fold(0.3)
    out = set(holdout.left_out(files.names, fold).nonzero()[0].tolist())
    assert len(out) == 2
    kept = [i for i in range(7) if i not in out]
    one, other = sorted(out)
    groups = files.groups(
        [kept[:4], [*kept[:3], one], [kept[2]] * 4, [other] * 4], list("abcd")
    )
    captions = files.captions([f"caption {i}" for i in range(7)])
    data, texts = files.read(fold=fold, image_captions=captions, group_captions=groups)
    assert [Path(path).name for path in data.paths] == [files.names[i] for i in kept]
    assert data.labels.tolist() == [LABELS[i] for i in kept]
    assert [texts[i] for i in data.texts.images] == [f"caption {i}" for i in kept]
    assert [texts[i] for i in data.texts.groups[:2]] == ["a", "c"]
    assert not {"b", "d"} & set(texts)
    whole, _ = files.read(image_captions=captions, group_captions=groups)
    assert whole.digest != data.digest
    assert data.n_scheduled == whole.n_scheduled == 7
    assert len(whole.paths) == 7


def test_fewer_than_two_images_are_refused(tmp_path):
    index = tiny.write_index(
        tmp_path / "i.parquet",
        ["a.png", "b.png"],
        ["test", "train"],
        [0, 1],
        CLASSNAMES,
    )
    bank = TokenizedTexts(tiny.tiny_clip())
    with pytest.raises(UserError, match=r"i\.parquet"):
        training_data.read(TrainingFiles(index, "p.parquet"), "a {}.", "zero_shot", bank)
