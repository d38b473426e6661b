import json
from dataclasses import replace

import pyarrow as pa
import pytest
from support import records
from support.tiny import write_pseudo_labels

from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels import fusion_report
from latteclip.labels.show import show

CLASSNAMES = ["red dots", "blue", "grey"]
REPORT = records.fusion(
    classnames=CLASSNAMES,
    model="some/model",
    voting=8,
    changed=2,
)
# image: zero-shot, calibrated, images, caption, fused
LABELS = {
    "a.png": (0, 0, 0, 0, 0),
    "b.png": (0, 1, 1, 1, 1),
    "c.png": (0, 0, 1, 0, 0),
    "d.png": (1, 1, 1, 1, 1),
    "e.png": (1, 1, 0, 0, 0),
    "f.png": (2, 2, 2, 2, 2),
    "g.png": (1, 1, 1, 2, 1),
    "h.png": (0, 0, 0, 0, 2),
    "i.png": (2, 2, 2, None, 2),
}


class Labelled:
    """The files of a dataset in which some labels changed."""

    def __init__(self, folder):
        self.folder, self.report, self.columns = folder, REPORT, {}

    def show(self, n=3, image_ids=()):
        """What is shown of the files, which are written first."""
        names, path = list(LABELS), self.folder / "fused_labels.parquet"
        zero_shot, calibrated, images, captions, fused = zip(*LABELS.values(), strict=True)
        columns = {
            field.name: pa.nulls(len(names), field.type) for field in tables.FUSED_LABELS
        }
        columns |= {
            "image_id": names,
            "adapted_label": calibrated,
            "image_label": images,
            "caption_label": [
                other if own is None else own
                for own, other in zip(captions, calibrated, strict=True)
            ],
            "caption_confidence": [
                0.0 if caption is None else 0.75 for caption in captions
            ],
            "fused_label": fused,
            "fused_confidence": [0.9] * len(names),
        }
        tables.write(path, columns | self.columns, tables.FUSED_LABELS)
        fusion_report.write_fusion_report(self.folder / fusion_report.NAME, self.report)
        write_pseudo_labels(
            self.folder / "pseudo_labels.parquet", names[::-1], zero_shot[::-1]
        )
        return show(str(self.folder), n, image_ids)


@pytest.fixture
def labelled(tmp_path):
    return Labelled(tmp_path)


def shown(text):
    """The ids of the images, in the order in which they are shown."""
    return [block.split("\n")[0] for block in text.split("\n\n")[1:]]


def test_the_summary_has_the_numbers_and_what_is_unusual(labelled):
    labelled.report = replace(
        REPORT, reason="Images do not predict the votes.", without_evidence=["grey"]
    )
    text = labelled.show(0)
    for words in ("8 of 9", "3 labels", "2 labels", "do not predict", "grey"):
        assert words in text
    assert shown(text) == []


def test_files_that_are_missing_or_foreign_are_named(labelled, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/fused_labels\.parquet"):
        show(str(tmp_path / "nowhere"), 5, [])
    labelled.show()
    (tmp_path / "pseudo_labels.parquet").unlink()
    with pytest.raises(UserError, match=r"pseudo_labels\.parquet"):
        show(str(tmp_path), 5, [])
    for damaged in ("{", '{"classnames": 3}'):
        (tmp_path / fusion_report.NAME).write_text(damaged)
        with pytest.raises(UserError, match=r"fused_labels\.json.*delete it"):
            show(str(tmp_path), 5, [])


def test_programs_get_the_same_as_json(tmp_path, capsys):
    labelled = Labelled(tmp_path)
    labelled.report = replace(
        REPORT,
        written_names={"blue": "Blue"},
        answers=fusion_report.PersonAnswers({"b.png": None, "c.png": "grey"}),
    )
    labelled.show()
    assert main.main(["labels", "show", str(tmp_path), "--json", "-n", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["shown"] == []
    words = ["labels", "show", str(tmp_path), "--json", "--image", "b.png", "i.png"]
    assert main.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == len(LABELS) and found["model"] == "some/model"
    assert found["answers"]["images"] == 2
    moved = sum(labels[0] != labels[-1] for labels in LABELS.values())
    assert found["differ_from_zero_shot"] == moved
    first, last = found["shown"]
    assert first["fused_label"] == "Blue" and first["zero_shot_label"] == "red dots"
    assert first["answered"] is None and "answered" not in last
    assert last["caption_label"] is None and last["caption_confidence"] == 0
    words = ["labels", "export", str(tmp_path), "--json", "--format", "csv", "-o", "x.csv"]
    assert main.main(words) == 2
    assert "--json" in capsys.readouterr().err
