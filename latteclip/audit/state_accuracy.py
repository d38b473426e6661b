"""State how right the labels and the chosen model are, by all answers that can tell.

Answers of `latteclip teach` that check are about images drawn uniformly from those that taught
nothing, and answers of an audit about a stratified sample of those. So in each stratum both
together are drawn uniformly, and count together. Images that taught are a stratum of their own, of
which all are known. What a run predicts of an image counts only where the run did not learn from
the image. Letters: N images, n answers, H strata.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.audit.sampling import (
    TEST,
    Floats,
    Ints,
    RunFiles,
    predictions_of,
    read_plan,
)
from latteclip.audit.score import MANY, MIN_ANSWERS, Interval, answered_prefix, share
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.evaluate.results import AccuracyStatement, Estimate, Run, read_selection
from latteclip.evaluate.train_predictions import MISSING
from latteclip.labels.answers import UNSURE
from latteclip.labels.fusion_report import PersonAnswers, read_fusion_report

log = logging.getLogger(__name__)
TEACH = "teach"
AUDIT = "audit"
Answered = Mapping[str, str | None]  # class names by image; None: none of the classes


@dataclass(frozen=True)
class Sample:
    """Images of which some were drawn and answered."""

    split: str  # test, or train
    image_ids: list[str]  # N
    strata: Ints  # [N]
    audited: Answered
    checked: Answered

    @property
    def known(self) -> Answered:
        return {**self.checked, **self.audited}


def state_accuracy(
    dataset: str,
    images_path: str,
    runs: Sequence[RunFiles],
    main: str,
    output: str,
    *,
    selection_path: str | None = None,
    fused_labels_path: str | None = None,
    fusion_report_path: str | None = None,
    plan_path: str | None = None,
    answers_path: str | None = None,
) -> None:
    """Write an `AccuracyStatement` about the labels and the chosen run, or one of method `main`.

    An estimate is null without MIN_ANSWERS answers.
    """
    index, classnames = tables.read_unlabelled(images_path, training=False)
    teaching = PersonAnswers()
    if fusion_report_path:
        teaching = read_fusion_report(fusion_report_path).answers
    audit = None
    if plan_path and answers_path:
        audit = _read_audit(dataset, plan_path, answers_path, index, classnames)
    run = next(each.run for each in runs if each.method == main)
    if selection_path:
        run = read_selection(selection_path).run
    samples = _samples(index, teaching, audit)
    statement = AccuracyStatement(
        dataset=dataset,
        method=run[0],
        seed=run[1],
        labels=_of_labels(fused_labels_path, index, classnames, teaching, audit),
        model=_of_run(run, runs, classnames, samples),
    )
    write_record(output, statement)
    for what in ("labels", "model"):
        estimate = getattr(statement, what)
        log.info("%s: %s", what, estimate.sentence if estimate else "too few answers.")


def _read_audit(
    dataset: str,
    plan_path: str,
    answers_path: str,
    index: pa.Table,
    classnames: Sequence[str],
) -> Sample | None:
    """Return the images of an audit with its answers that are certain, if they can be read."""
    try:
        plan = read_plan(plan_path, index, classnames)
        saved = plan.schema(dataset).read(Path(answers_path))
    except UserError as error:  # as in score_audit
        log.warning("%s", error)
        return None
    answers = answered_prefix(plan, saved.asked)
    certain = {
        name: answer.classname for name, answer in answers.items() if answer.kind != UNSURE
    }
    return Sample(plan.split, plan.image_ids, plan.strata, certain, {})


def _samples(
    index: pa.Table, teaching: PersonAnswers, audit: Sample | None
) -> list[Sample]:
    """Return the test images of an audit, and the training images with all answers about them.

    The images that taught are the hardest ones. All of them are known, so they are a stratum.
    """
    training = index.filter(pc.not_equal(index["split"], TEST))["image_id"].to_pylist()
    strata = np.zeros(len(training), np.int_)
    audited: Answered = {}
    samples = []
    if audit and audit.split == TEST:
        samples.append(audit)
    elif audit:
        training = audit.image_ids
        strata = audit.strata
        audited = audit.audited
    taught = teaching.images.keys() - set(teaching.checking)
    is_open = np.array([name not in taught for name in training], bool)
    names = [name for name in training if name not in taught]
    last = np.full(len(taught), strata.max(initial=0) + 1)
    untaught = set(names)
    inside = untaught | taught
    by_teach = {name: answer for name, answer in teaching.images.items() if name in inside}
    audited = {name: answer for name, answer in audited.items() if name in untaught}
    strata = np.concatenate([strata[is_open], last])
    samples.append(Sample("train", [*names, *sorted(taught)], strata, audited, by_teach))
    return samples


def _of_run(
    run: Run, runs: Sequence[RunFiles], classnames: Sequence[str], samples: Sequence[Sample]
) -> Estimate | None:
    """Return the share of new images that a run classifies correctly, by the larger sample."""
    of_method = [each for each in runs if each.method == run[0]]
    place = [each.run for each in of_method].index(run)
    estimates = []
    for sample in samples:
        ids = pa.chunked_array([sample.image_ids], pa.string())
        predicted = predictions_of(of_method, ids, classnames, sample.split)[place]
        estimates.append(_estimate(sample, predicted, classnames))
    return _larger(estimates)


def _of_labels(
    fused_labels_path: str | None,
    index: pa.Table,
    classnames: Sequence[str],
    teaching: PersonAnswers,
    audit: Sample | None,
) -> Estimate | None:
    """Return the share of right labels of all training images, by the answers that are more.

    Labels learn from the answers of teach. So its checks have their own estimate, and an audit
    counts without them.
    """
    estimates: list[Estimate | None] = []
    checked = teaching.checked
    if checked and checked.answers >= MIN_ANSWERS:
        ends = (checked.value, checked.low, checked.high)
        estimates.append(Estimate(*ends, checked.answers, [TEACH]))
    if fused_labels_path and audit and audit.split != TEST:
        ids = pa.chunked_array([audit.image_ids], pa.string())
        table = tables.read(fused_labels_path, tables.FUSED_LABELS)
        rows = pc.index_in(ids, table["image_id"])
        labels = np.asarray(table["fused_label"].take(rows).fill_null(MISSING).to_numpy())
        is_taught = np.array([name in teaching.images for name in audit.image_ids], bool)
        labels = np.where(is_taught, MISSING, labels)
        estimate = _estimate(audit, labels, classnames)
        n = len(table)
        estimates.append(estimate and _with_answered(estimate, len(teaching.images), n))
    return _larger(estimates)


def _with_answered(estimate: Estimate, answered: int, n: int) -> Estimate:
    """Return the share of right labels of all n images, of which the answered ones are right."""
    shares = (estimate.value, estimate.low, estimate.high)
    value, low, high = ((answered + each * (n - answered)) / n for each in shares)
    return Estimate(value, low, high, estimate.answers, estimate.by)


def _larger(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Return the estimate by most answers: their number does not depend on what they say."""
    known = [estimate for estimate in estimates if estimate]
    return max(known, key=lambda estimate: estimate.answers, default=None)


def _estimate(
    sample: Sample, predicted: Ints, classnames: Sequence[str]
) -> Estimate | None:
    """Return the share of right predictions [N] for images like those that have a prediction."""
    is_predicted = predicted != MISSING
    row_of = {name: row for row, name in enumerate(sample.image_ids)}
    number: dict[str | None, int] = {name: row for row, name in enumerate(classnames)}
    answered = {
        row_of[name]: number.get(answer, MISSING)
        for name, answer in sample.known.items()
        if is_predicted[row_of[name]]
    }
    if len(answered) < MIN_ANSWERS:
        return None
    rows = np.array(list(answered))
    hits: Floats = (predicted[rows] == list(answered.values())).astype(np.float64)
    sizes = np.bincount(sample.strata[is_predicted], minlength=sample.strata.max() + 1)
    interval: Interval = share(hits, sample.strata[rows], sizes * MANY)
    ids = {sample.image_ids[row] for row in answered}
    named = ((TEACH, sample.checked), (AUDIT, sample.audited))
    by = [command for command, answers in named if not ids.isdisjoint(answers)]
    return Estimate(*interval, len(answered), by)
