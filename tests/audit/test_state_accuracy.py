"""What the page says of labels and model by a person's answers, with a truth that is planted."""

import numpy as np
import pyarrow as pa
import pytest
from support import records
from support.made_results import Results

from latteclip.audit import sampling, score
from latteclip.audit.state_accuracy import TEACH, Sample, _estimate, state_accuracy
from latteclip.core import tables
from latteclip.core.metadata import ClassesMetadata
from latteclip.evaluate.results import read_statement
from latteclip.labels import fusion_report
from latteclip.labels.answers import Answer

CLASSNAMES = ["a", "b", "c"]
N = 600


class Folder:
    """A folder of N unlabelled images, and a run that is right about a planted share of them."""

    def __init__(self, root, right=0.7):
        self.root = root
        rng = np.random.default_rng(0)
        self.made = Results(
            root, classnames=CLASSNAMES, n_train=N, n_test=0, labelled=False, seeds=1
        )
        self.ids = self.made.image_ids
        self.truth = rng.integers(0, 3, N)
        is_right = rng.random(N) < right
        self.predicted = np.where(is_right, self.truth, (self.truth + 1) % 3)
        self.order = rng.permutation(N)

    def write_predictions(self, held_out):
        path = self.root / "held.parquet"
        columns = {
            "image_id": self.ids,
            "prediction": self.predicted.astype(np.int32),
            "held_out": held_out,
        }
        tables.write(path, columns, tables.TRAIN_PREDICTIONS, ClassesMetadata(CLASSNAMES))
        return sampling.RunFiles("flyp", 0, "", None, str(path))

    def teach(self, taught, checked):
        """Write answers: images that taught, and others that were drawn to check."""
        names = {self.ids[i]: CLASSNAMES[self.truth[i]] for i in (*taught, *checked)}
        check = records.checked([self.ids[i] for i in checked], answers=len(checked))
        path = self.root / "fused.json"
        answers = fusion_report.PersonAnswers(names, check)
        fusion_report.write_fusion_report(path, records.fusion(answers=answers))
        return str(path)

    def state(self, run, **files):
        output = str(self.root / "accuracy.json")
        state_accuracy("made", self.made.images, [run], "flyp", output, **files)
        return read_statement(output)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_only_images_that_were_held_out_tell_of_new_ones(folder):
    """Where the run learned from an image it is right, and would look better than it is.

    Images that taught are the hard ones: they count for no more than their share.
    """
    learned, _, taught, checked = folder.order.reshape(4, 150)
    folder.predicted[learned] = folder.truth[learned]
    folder.predicted[taught[:120]] = (folder.truth[taught[:120]] + 1) % len(CLASSNAMES)
    run = folder.write_predictions(~np.isin(np.arange(N), learned))
    drawn = [*checked[:60], *learned[:60]]
    stated = folder.state(run, fusion_report_path=folder.teach(taught, drawn))
    right = (folder.predicted == folder.truth)[checked[:60]].mean()
    right_taught = (folder.predicted == folder.truth)[taught].mean()
    value = (300 * right + 150 * right_taught) / 450
    assert stated.model.value == pytest.approx(value)
    assert stated.model.answers == 60 + 150 and stated.model.by == [TEACH]
    assert stated.model.low < value < stated.model.high
    assert stated.run == ("flyp", 0)
    # The labels have the estimate of their own checks, which left each answer out.
    assert (stated.labels.value, stated.labels.answers) == (0.9, 120)


def test_too_few_answers_tell_nothing(folder):
    run = folder.write_predictions(np.ones(N, bool))
    few = folder.teach([], folder.order[: score.MIN_ANSWERS - 1])
    stated = folder.state(run, fusion_report_path=few)
    assert stated.model is None and stated.labels is None


def test_answers_of_teach_and_audit_count_together_and_the_interval_holds(folder):
    """In 95 % of drawings: strata are asked at different rates, and differ in accuracy."""
    is_right = folder.predicted == folder.truth
    strata = np.where(is_right & (np.arange(N) % 4 > 0), 0, 1)
    truth = is_right.mean()
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        turn = sampling.sampling_order(strata, rng)
        asked = np.argsort(turn)[:40]
        checked = rng.choice(N, 40, replace=False)
        names = [
            {folder.ids[i]: CLASSNAMES[folder.truth[i]] for i in x}
            for x in (asked, checked)
        ]
        sample = Sample("train", folder.ids, strata, *names)
        estimate = _estimate(sample, folder.predicted, CLASSNAMES)
        assert estimate.answers == len({*asked, *checked})
        held += estimate.low <= truth <= estimate.high
    assert held >= 184  # 95 % of 200, less two standard errors


def test_an_audit_tells_of_labels_that_its_answers_did_not_teach(folder):
    """The larger of both samples counts, whatever it says."""
    run = folder.write_predictions(np.ones(N, bool))
    place = folder.root / "audit"
    place.mkdir()
    index, _ = tables.read_unlabelled(folder.made.images, training=True)
    plan = place / "plan.parquet"
    turn = np.argsort(folder.order)
    columns = {"image_id": folder.ids, "checksum": index["checksum"].combine_chunks()}
    columns |= {"stratum": np.zeros(N, np.int32), "turn": turn.astype(np.int32)}
    columns = {name: columns[name] for name in tables.PLAN.names}
    tables.write(plan, columns, tables.PLAN, sampling.PlanMetadata("train", 0))
    read = sampling.read_plan(plan, index, CLASSNAMES)
    answers = place / "answers.json"
    given = {
        folder.ids[i]: Answer(folder.ids[i], "class", CLASSNAMES[folder.truth[i]])
        for i in folder.order[:100]
    }
    schema = read.schema("made")
    schema.write(answers, given, schema.read(answers).revision)
    columns = {field.name: pa.nulls(N, field.type) for field in tables.FUSED_LABELS}
    columns |= {"image_id": folder.ids, "fused_label": folder.predicted.astype(np.int32)}
    columns["fused_confidence"] = np.ones(N, np.float32)
    fused = folder.root / "fused.parquet"
    tables.write(fused, columns, tables.FUSED_LABELS, ClassesMetadata(CLASSNAMES))
    files = {
        "plan_path": str(plan),
        "answers_path": str(answers),
        "fused_labels_path": str(fused),
    }
    stated = folder.state(run, **files)
    right = (folder.predicted == folder.truth)[folder.order[:100]].mean()
    assert stated.labels.value == pytest.approx(right) and stated.labels.by == ["audit"]
    assert stated.model.value == pytest.approx(right)
    taught = folder.order[100:200]
    report = folder.teach(taught, folder.order[200:220])
    stated = folder.state(run, fusion_report_path=report, **files)
    assert stated.labels.value == pytest.approx((120 + right * 480) / 600)
    assert stated.model.answers == 220 and stated.model.by == ["teach", "audit"]
