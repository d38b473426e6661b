"""What is known of each labeller, and what not."""

import numpy as np
from support import records
from support.tiny import write_index, write_pseudo_labels

from latteclip.core import tables
from latteclip.labels.fusion_report import NAME, write_fusion_report
from latteclip.labels.guarantees import Interval
from latteclip.report.labellers import read_labellers

CLASSNAMES = ["cat", "dog"]
NAMES = [f"{number}.png" for number in range(8)]
TRUTH = [0, 0, 0, 0, 1, 1, 1, 1]
WORDS = [0, 0, 0, 1, 1, 1, 1, 0]  # 6 of 8 right
MINE = [0, -1, -1, -1, 1, 0, -1, 1]  # 3 of 4 right
FUSED = [0, 0, 0, 0, 1, 1, 1, 0]


def write(folder, labels=TRUTH, **fields):
    """The files of a dataset's results that tell of its labellers."""
    splits = ["train"] * 8
    write_index(
        folder / "images.parquet", NAMES, splits, labels, CLASSNAMES, image_ids=NAMES
    )
    write_pseudo_labels(folder / "pseudo_labels.parquet", NAMES, [0] * 8, 0.5)
    columns = {name: [None] * 8 for name in tables.FUSED_LABELS.names}
    pairs = tables.list_column(np.array([WORDS, MINE], np.int32).T)
    columns |= {"image_id": NAMES, "fused_label": FUSED, "labeller_labels": pairs}
    tables.write(folder / "fused_labels.parquet", columns, tables.FUSED_LABELS)
    both = [
        records.labeller("words", votes=8),
        records.labeller(
            "mine",
            kind="file",
            table="votes/mine.parquet",
            votes=4,
            weight=0.0,
            accuracy=None,
            answers_needed=250,
        ),
    ]
    texts = records.class_texts(accuracy=Interval(0.9, 0.8, 0.95, 0))
    fields = {"zero_shot": texts, "classnames": CLASSNAMES} | fields
    write_fusion_report(folder / NAME, records.fusion(labellers=both, **fields))


def test_each_labeller_has_its_shares(tmp_path):
    write(tmp_path)
    found = read_labellers(tmp_path)
    assert [one.name for one in found] == ["words", "mine", "zero_shot", "fused"]
    assert [one.right for one in found] == [0.75, 0.75, 0.5, 0.875]
    assert [one.coverage for one in found] == [1, 0.5, 0.75, 1]
    assert found[0].accuracy == "80.0 % (70.0 to 90.0), by votes and images"
    assert found[1].accuracy.startswith("unknown; 250 answers")
    assert found[3].accuracy == "unknown without answers"


def test_without_labels_answers_alone_give_accuracies(tmp_path):
    write(tmp_path, labels=[None] * 8, labels_right=Interval(0.9, 0.8, 0.95, 50))
    found = read_labellers(tmp_path)
    assert {one.right for one in found} == {None}
    assert found[-1].accuracy == "90.0 % (80.0 to 95.0), by answers"
