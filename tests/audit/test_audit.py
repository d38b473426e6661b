"""The command as a whole: the limits of an audit, and the estimates from its answers."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.audits import answer, answer_next, made_audit, write_train_predictions

from latteclip.audit import score
from latteclip.audit.audit import (
    AuditSession,
    offered_classes,
    plan_of,
    rename_class,
    runs_in,
    sampling_order,
)
from latteclip.audit.session import OFFERED
from latteclip.core import tables
from latteclip.core.answers import CHECK, CLASS, TEACH, Answer, AnswerFile
from latteclip.core.errors import UserError
from latteclip.core.files import read_record
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate.results import MISSING, Audit

N_TEST = 120


@pytest.fixture
def results(tmp_path):
    return made_audit(tmp_path / "made", n_test=N_TEST)


@pytest.fixture
def training(tmp_path):
    """Results without a test split, whose models learned from all images."""
    return made_audit(tmp_path / "training", n_test=0)


@pytest.fixture
def session(results):
    return AuditSession(results.folder, 60)


@pytest.fixture
def label_of(results):
    return dict(zip(results.image_ids, results.labels.tolist(), strict=True)).__getitem__


def test_labels_are_never_read(results):
    """With and without labels in the index and the predictions, all is the same."""
    labelled = made_audit(results.folder.parent / "labelled", n_test=N_TEST)
    labelled.labelled = True
    labelled.write_index()
    one, other = (AuditSession(each.folder, N_TEST) for each in (results, labelled))
    assert one.file.plan == other.file.plan
    assert [q.options for q in one.questions] == [q.options for q in other.questions]


def image_ids(session):
    return session.file.images["image_id"].to_pylist()


def test_without_a_test_split_no_image_is_asked_about_that_taught_a_model(training):
    """Seeds leave out different images, and `latteclip teach` asked about one of these."""
    results = training
    write_train_predictions(results, "zero_shot/seed0", results.image_ids)
    write_train_predictions(results, "flyp/seed0", results.image_ids[:15])
    write_train_predictions(results, "flyp/seed1", results.image_ids[15:30])
    write_train_predictions(results, "latteclip/seed0", results.image_ids)
    index = results.folder / "images.parquet"
    images, names = tables.read_unlabelled(index, training=True)
    file = AnswerFile(results.folder / "answers.json", images, names)
    asked = zip(results.image_ids[3:5], (TEACH, CHECK), strict=True)
    answers = {name: Answer(name, CLASS, names[0], phase) for name, phase in asked}
    file.update(answers)
    found = AuditSession(results.folder, 40)
    untaught = [name for name in results.image_ids[:30] if name != results.image_ids[3]]
    assert (found.plan.split, sorted(image_ids(found))) == ("train", sorted(untaught))


def test_without_a_model_nothing_is_asked(results):
    for path in results.folder.glob("*/seed*/metrics.json"):
        path.unlink()
    with pytest.raises(UserError, match="no test images"):
        AuditSession(results.folder, 10)


def forget(results, names):
    """Let a run predict no images of these names."""
    path = results.folder / "flyp" / "seed0" / "predictions.parquet"
    table = tables.read(path)
    metadata = tables.read_metadata(path, ClassesMetadata)
    rest = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(names))))
    tables.write(path, rest, tables.PREDICTIONS, metadata)


def test_runs_of_an_earlier_index_do_not_make_the_audit_small(results, caplog):
    forget(results, results.image_ids[-100:])
    assert len(image_ids(AuditSession(results.folder, 60))) == N_TEST
    assert "flyp predicts few" in caplog.text


def test_of_many_classes_those_that_runs_predict_are_offered_in_the_order_of_the_classes():
    names = [f"class {c}" for c in range(30)]
    offered = offered_classes(names, [29, MISSING, 7, 29], [12, 7, 3, 20, 1, 2])
    assert offered == [names[c] for c in (1, 3, 7, 12, 20, 29)]
    assert len(offered) == OFFERED
    assert offered_classes(names, range(8), [20]) == names[:8]


def test_all_images_answered_give_the_accuracies_themselves(results, label_of):
    session = AuditSession(results.folder, N_TEST)
    answer_next(session, N_TEST, label_of)
    found = session.score(session.answers())
    labels = results.labels[results.n_train :]
    rights = {}
    for run in results.runs:
        table = tables.read(run.predictions)
        rights[run.method, run.seed] = (table["prediction"].to_numpy() == labels).mean()
    accuracies = {one.run: one.accuracy for one in found.runs}
    assert {run: one.value for run, one in accuracies.items()} == pytest.approx(rights)
    assert all(one.low == one.value == one.high for one in accuracies.values())
    assert found.runs[0].run == max(rights, key=rights.get)
    for one, other in itertools.permutations(rights, 2):
        lead = found.lead(one, other)
        assert lead.is_decided
        assert lead.value == pytest.approx(rights[one] - rights[other])


def test_answers_after_the_first_image_without_one_are_left_out(session, label_of):
    answer_next(session, 20, label_of)
    before = session.score(session.answers())
    late = session.questions[50].image_id
    answer(session, Answer(late, "none"))
    assert session.score(session.answers()) == before


def score_again(results):
    """What the rule writes of an audit of made results."""
    folder, output = results.folder / "audit" / "test", str(results.folder / "audit.json")
    plan = str(folder / "plan.parquet")
    score.score_audit("made", results.images, plan, results.runs, output)
    return read_record(Audit, output)


@pytest.mark.parametrize("kind", ["class", "none", "unsure"])
@pytest.mark.parametrize("n", [0, 1, 9, 10, N_TEST])
def test_any_number_of_answers_of_any_kind_has_a_sentence(results, label_of, n, kind):
    session = AuditSession(results.folder, N_TEST)
    answer_next(session, n, label_of, kind)
    found = score_again(results)
    enough = n >= 10 and kind != "unsure"
    assert bool(found.runs) == enough and found.sentence
    assert found == session.score(session.file.read().asked)
    accuracies = [one.accuracy for one in found.runs]
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in accuracies)


def test_images_that_a_model_learns_from_later_are_left_out_for_all(
    results, session, label_of
):
    answer_next(session, 40, label_of)
    forget(results, [one.image_id for one in session.questions[:5]])
    found = score_again(results)
    assert (found.answered, len(found.runs)) == (35, len(results.runs))


def test_the_interval_of_training_images_is_that_of_new_ones(training):
    """All are asked about, and the interval does not close."""
    ids = training.image_ids
    for shift, run in enumerate(("zero_shot/seed0", "flyp/seed0", "latteclip/seed0")):
        write_train_predictions(training, run, ids, shift)
    session = AuditSession(training.folder, 40)
    answer_next(session, session.total, dict.fromkeys(ids, 0).__getitem__)
    found = session.score(session.answers())
    assert len(found.runs) == len(training.runs)
    assert any(one.n for run in found.runs for one in run.leads)
    for run in found.runs:
        assert run.accuracy.low < run.accuracy.value < run.accuracy.high
        assert all(one.low < one.value < one.high for one in run.leads if one.n)


def test_answers_follow_a_renamed_class(results):
    def answered():
        return [a.classname for a in AuditSession(results.folder, 20).answers().values()]

    with pytest.raises(UserError, match="known are: none"):
        rename_class(str(results.folder), "dots", "points")
    answer_next(AuditSession(results.folder, 20), 20, label_of=lambda name: 3)
    assert answered() == ["dots"] * 20
    with pytest.raises(UserError, match="dots"):
        rename_class(str(results.folder), "dotts", "points")
    rename_class(str(results.folder), "dots", "Red_Points")
    assert answered() == []  # the index has the old name
    results.classnames[3] = "red points"
    results.write_index()
    for run in results.runs:
        results.write_run(run.method, run.seed)
    assert answered() == ["red points"] * 20


# --- which images are drawn -----------------------------------------------------------------------


def random_strata(n):
    return np.random.default_rng(0).integers(2, size=n)


@pytest.mark.parametrize("n", [50, 250])
def test_every_beginning_has_each_stratum_at_its_rate(n):
    strata = random_strata(400)
    order = sampling_order(strata, np.random.default_rng(1))
    drawn = np.bincount(strata[order[:n]], minlength=2)
    sizes = np.bincount(strata, minlength=2)
    expected = sizes * score.RATES / (sizes @ score.RATES) * n
    assert (np.abs(drawn - expected) <= 1.01).all()


def test_images_of_a_stratum_are_drawn_with_one_probability():
    """Of many drawings, how often each image is among the first n."""
    strata = random_strata(60)
    rng = np.random.default_rng(0)
    n, drawings = 20, 4000
    often = np.zeros(60)
    for _ in range(drawings):
        often[sampling_order(strata, rng)[:n]] += 1
    for h in np.unique(strata):
        shares = often[strata == h] / drawings
        error = np.sqrt(shares.mean() * (1 - shares.mean()) / drawings)
        assert np.abs(shares - shares.mean()).max() < 5 * error


def test_a_copy_of_a_run_beside_it_is_left_out(results):
    runs = runs_in(results.folder)
    folder = Path(runs[-1].metrics).parent
    shutil.copytree(folder, folder.with_name(f"{folder.name}_backup"))
    assert runs_in(results.folder) == runs


def test_another_table_in_place_of_the_plan_is_one_sentence(session, results):
    plan = plan_of(results.folder, "test")
    shutil.copy(results.folder / "images.parquet", plan)
    with pytest.raises(UserError, match=re.escape(str(plan))):
        AuditSession(results.folder, 60)
