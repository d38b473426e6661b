"""What a person's answers state about labels and a run."""

from inspect import signature

import numpy as np
import pytest
from support import records

from latteclip.audit.teach import teach
from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate.results import (
    QUESTIONS,
    Audit,
    AuditedRun,
    RunFiles,
    accuracy_by_answers,
)
from latteclip.labels.guarantees import Interval

RUN = ("flyp", 0)
IDS = [f"{number}.png" for number in range(40)]


@pytest.fixture
def predictions(tmp_path):
    """Of 30 checked images 24 were left out of the training, and 18 of these are right."""
    path = tmp_path / "train_predictions.parquet"
    columns = {
        "image_id": IDS[:24],
        "prediction": np.repeat([0, 1], [18, 6]).astype(np.int32),
    }
    tables.write(path, columns, tables.TRAIN_PREDICTIONS, ClassesMetadata(["a", "b"]))
    return RunFiles(*RUN, "", str(path))


def report(n):
    return records.fusion(answers=dict.fromkeys(IDS[:n], "a"), checking=IDS[:n])


def test_checks_of_labels_are_checks_of_a_model_that_did_not_learn_from_them(predictions):
    found, asking = accuracy_by_answers(predictions, report(30), None)
    assert (found.value, found.n, asking) == (0.75, 24, "teach")
    assert found.low < 0.6 < 0.85 < found.high
    for few in (report(9), records.fusion()):
        assert accuracy_by_answers(predictions, few, None) == (None, "teach")


def test_an_audit_of_the_run_comes_first(predictions):
    accuracy = Interval(0.6, 0.5, 0.7, 80)
    run = AuditedRun(*RUN, accuracy, [])
    audit = Audit("d", "test", 500, 90, "", [run])
    found = accuracy_by_answers(predictions, report(30), audit)
    assert found == (accuracy, "audit")


def test_the_page_names_the_number_of_questions_that_teach_asks():
    assert signature(teach).parameters["budget"].default == QUESTIONS
