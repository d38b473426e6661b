import pytest
from support.audits import answer_next, made_audit

from latteclip.audit.audit import AuditSession
from latteclip.audit.rename_class import rename_class
from latteclip.core.errors import UserError


@pytest.fixture
def results(tmp_path):
    results = made_audit(tmp_path / "made")
    answer_next(AuditSession(results.folder, 20), 20, label_of=lambda name: 3)
    return results


def answered(results):
    return [one.classname for one in AuditSession(results.folder, 20).answers().values()]


def test_answers_follow_a_renamed_class(results):
    assert results.classnames[3] == "dots"
    rename_class(str(results.folder), "dots", "Red_Points")
    assert answered(results) == []  # the index has the old name
    results.classnames[3] = "red points"
    results.write_index()
    for run in results.runs:
        results.write_run(run.method, run.seed)
    assert answered(results) == ["red points"] * 20


def test_a_class_that_no_answer_knows_is_named(results, tmp_path):
    with pytest.raises(UserError, match="dots"):
        rename_class(str(results.folder), "dotts", "points")
    with pytest.raises(UserError, match="empty"):
        rename_class(str(tmp_path / "empty"), "dots", "points")
