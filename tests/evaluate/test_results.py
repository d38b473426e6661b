"""What a person's answers state about labels and a run."""

from inspect import signature

import numpy as np
import pytest
from support import records

from latteclip.audit.teach import teach
from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate.results import QUESTIONS, Accuracy, Audit, largest_error, state
from latteclip.labels.fusion_report import PersonAnswers

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
    return str(path)


def report(n):
    checked = records.checked(IDS[:n], value=0.8, low=0.7, high=0.9)
    answers = PersonAnswers(dict.fromkeys(IDS[:n], "a"), checked)
    return records.fusion(answers=answers)


def test_checks_of_labels_are_checks_of_a_model_that_did_not_learn_from_them(predictions):
    found = state(RUN, predictions, report(30), None)
    assert (found.labels.value, found.labels.n, found.by) == (0.8, 30, "teach")
    assert (found.model.value, found.model.n) == (0.75, 24)
    assert found.model.low < 0.6 < 0.85 < found.model.high
    few = state(RUN, predictions, report(9), None)
    assert (few.labels, few.model) == (None, None)
    nobody = state(RUN, predictions, records.fusion(), None)
    assert (nobody.labels, nobody.model) == (None, None)


def test_an_audit_of_the_run_comes_first(predictions):
    accuracies = [Accuracy(*RUN, 0.6, 0.5, 0.7)]
    audit = Audit("d", "test", 500, 90, 10, 0, "p", "", accuracies, [])
    found = state(RUN, predictions, report(30), audit)
    assert (found.model.value, found.model.n, found.by) == (0.6, 80, "audit")
    other = state(("flyp", 1), predictions, report(30), audit)
    assert (other.model.n, other.by) == (24, "teach")


def test_the_sixty_checks_of_teach_give_an_accuracy_to_within_thirteen_points():
    assert signature(teach).parameters["budget"].default == QUESTIONS
    assert 0.12 < largest_error(QUESTIONS // 2) < 0.13
