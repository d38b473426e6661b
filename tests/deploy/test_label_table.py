import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit
from support.worlds import CLASSNAMES

from latteclip.core import tables
from latteclip.deploy import label_table
from latteclip.deploy.label_table import calibrate


def rows(taken):
    return label_table.read(taken.folder)[0].to_pylist()


def test_each_label_comes_with_what_is_known_of_it(taken):
    found = rows(taken)
    assert [row["image_id"] for row in found] == taken.ids  # none of the test split
    assert [row["label"] for row in found] == [CLASSNAMES[label] for label in taken.fused]
    np.testing.assert_allclose([row["probability"] for row in found], taken.confidence)
    unknown = tables.read("unknown.parquet")
    unknown = unknown.take(pa.array(taken.training)).to_pylist()
    for number, (row, known) in enumerate(zip(found, unknown, strict=True)):
        silent = number % 9 == 0
        expected = {
            "fused_label": row["label"],
            "caption_label": None if silent else CLASSNAMES[taken.truth[number]],
            "caption_confidence": None if silent else 0.75,
            "caption": f'a "{number}",\nand more',
            "zero_shot": CLASSNAMES[0],  # as the pseudo-labels are
            **dict.fromkeys(["image_prototypes", "lmm_label", "answered"]),
            "is_unknown": known["is_unknown"],
            "unknown_score": known["score"],
        }
        assert {name: row[name] for name in expected} == expected


def test_answers_are_the_labels_and_enough_of_them_calibrate(taken):
    before = rows(taken)
    answers = taken.answer(20)
    for row, earlier in zip(rows(taken), before, strict=True):
        changed = {"label": row["fused_label"], "answered": None}
        if one := answers.get(row["image_id"]):
            word = one.classname or "none of these"
            changed = {"label": one.classname, "answered": word}
        assert row == earlier | changed
    taken.answer(70)
    table, described = label_table.read(taken.folder)
    assert described.calibration.answers == 70
    share = (taken.fused == taken.truth)[:69].sum() / 70
    assert table["probability"].to_numpy()[:70].mean() == pytest.approx(share, abs=0.1)


def test_of_images_that_show_one_picture_the_first_or_an_answered_one_remains(taken):
    taken.write_report(answers={taken.ids[4]: CLASSNAMES[0]})
    taken.write_duplicates([(0, 1, 2), (3, 4, 5)])
    found = [row["duplicate_of"] for row in rows(taken)][:7]
    first, answered = taken.ids[0], taken.ids[4]
    assert found == [None, first, first, answered, None, answered, None]


def test_the_correction_is_found():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.05, 0.999, 4000)
    truth = expit(0.5 * logit(probabilities) - 1)  # the probabilities are too high
    found = calibrate([*zip(probabilities, rng.random(4000) < truth, strict=True)])
    np.testing.assert_allclose(found(probabilities), truth, atol=0.05)
    assert found.answers == 4000
