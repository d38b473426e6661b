import json

import pyarrow as pa
import pytest
from support import records
from support.tiny import write_pseudo_labels

from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels import fusion_report
from latteclip.labels.show import show

REPORT = records.fusion(
    classnames=["red dots", "blue", "grey"],
    written_names={"blue": "Blue"},
    model="some/model",
    voting=7,
    changed=2,
    reason="Images do not predict the votes.",
    without_evidence=["grey"],
    answers=fusion_report.PersonAnswers({"b.png": None, "c.png": "grey"}),
)
LABELS = {  # zero-shot, adapted, images, caption, fused
    "a.png": (0, 0, 0, 0, 0),
    "b.png": (0, 1, 1, 1, 1),
    "c.png": (0, 0, 1, 0, 0),
    "d.png": (1, 1, 1, 1, 1),
    "e.png": (1, 1, 0, 0, 0),
    "h.png": (0, 0, 0, 0, 2),
    "i.png": (2, 2, 2, None, 2),
}
CHANGED = {"b.png", "e.png", "h.png"}


@pytest.fixture
def results(tmp_path):
    """The files of a dataset in which some labels changed."""
    zero_shot, adapted, images, captions, fused = zip(*LABELS.values(), strict=True)
    n = len(LABELS)
    columns = {field.name: pa.nulls(n, field.type) for field in tables.FUSED_LABELS}
    columns |= {
        "image_id": list(LABELS),
        "adapted_label": adapted,
        "image_label": images,
        "caption_label": [2 if own is None else own for own in captions],
        "caption_confidence": [0.0 if own is None else 0.75 for own in captions],
        "fused_label": fused,
        "fused_confidence": [0.9] * n,
    }
    tables.write(tmp_path / "fused_labels.parquet", columns, tables.FUSED_LABELS)
    fusion_report.write_fusion_report(tmp_path / fusion_report.NAME, REPORT)
    path = tmp_path / "pseudo_labels.parquet"
    write_pseudo_labels(path, list(LABELS)[::-1], zero_shot[::-1])
    return tmp_path


def test_the_summary_has_the_numbers_and_what_is_unusual(results):
    text = show(str(results), 0, [])
    for words in ("7 of 7", "3 labels", "2 labels", "do not predict", "grey"):
        assert words in text
    assert "\n\n" not in text  # and no image


def test_images_of_each_kind_have_the_label_by_each_source(results):
    blocks = show(str(results), 3, []).split("\n\n")[1:]
    ids = [block.split("\n")[0] for block in blocks]
    assert len(CHANGED.intersection(ids)) == 1 and "c.png" in ids
    text = show(str(results), 0, ["i.png", "b.png"])
    assert text.index("i.png") < text.index("b.png")
    for words in ("caption     no vote", "fused       Blue (0.90)", "answered    none of"):
        assert words in text


def test_files_that_are_missing_or_foreign_are_named(results):
    with pytest.raises(UserError, match=r"nowhere/fused_labels\.parquet"):
        show(str(results / "nowhere"), 5, [])
    with pytest.raises(UserError, match=r"z\.png"):
        show(str(results), 5, ["z.png"])
    (results / fusion_report.NAME).write_text('{"classnames": 3}')
    with pytest.raises(UserError, match=r"fused_labels\.json.*delete it"):
        show(str(results), 5, [])


def test_programs_get_the_same_as_json(results, capsys):
    words = ["labels", "show", str(results), "--json", "--image", "b.png", "i.png"]
    assert main.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == len(LABELS) and found["model"] == "some/model"
    assert found["answers"]["images"] == 2
    assert found["differ_from_zero_shot"] == len(CHANGED)
    first, last = found["shown"]
    assert first["fused_label"] == "Blue" and first["zero_shot_label"] == "red dots"
    assert first["answered"] is None and "answered" not in last
    assert last["caption_label"] is None and last["caption_confidence"] == 0
    assert main.main(["labels", "export", str(results), "--json"]) == 2
    assert "--json" in capsys.readouterr().err
