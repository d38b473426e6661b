"""State the accuracy of labels, and of a model on new images, by a person's answers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from latteclip.evaluate.results import Audit, Run, read_audit
from latteclip.evaluate.train_predictions import MISSING, held_out_predictions
from latteclip.labels.fusion_report import NAME, FusionReport, read_fusion_report
from latteclip.labels.guarantees import MIN_ANSWERS, Interval

TEACH = "teach"
AUDIT = "audit"


@dataclass(frozen=True)
class Statement:
    """Accuracies that answers of a person give. None: there are too few."""

    labels: Interval | None  # of all training images
    model: Interval | None  # on images like those that were drawn
    by: str = AUDIT  # the command whose answers give the accuracy of the model


def state(
    run: Run,
    train_predictions: str | None,
    report: FusionReport | None,
    audit: Audit | None,
) -> Statement:
    """Return what the answers of a dataset give for its labels and for a run."""
    checked = report.answers.checked if report else None
    labels = checked.right if checked and checked.right.n >= MIN_ANSWERS else None
    scored = audit.accuracy(*run) if audit else None
    if audit and scored and scored.run == run:
        known = audit.answered - audit.cannot_tell
        model = Interval(scored.value, scored.low, scored.high, known)
        return Statement(labels, model)
    if report is None or checked is None or train_predictions is None:
        return Statement(labels, None)
    return Statement(labels, _by_checks(train_predictions, report), TEACH)


def _by_checks(train_predictions: str, report: FusionReport) -> Interval | None:
    """Return the share of checked images that a run classifies correctly without them."""
    answers = report.answers
    ids = pa.chunked_array([answers.checking], pa.string())
    predicted = held_out_predictions(train_predictions, ids, report.classnames)
    number = {name: label for label, name in enumerate(report.classnames)}
    labels = [number.get(str(answers.images[name]), MISSING) for name in answers.checking]
    known = predicted != MISSING
    n = int(known.sum())
    if n < MIN_ANSWERS:
        return None
    right = int((predicted == np.array(labels))[known].sum())
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    return Interval(right / n, float(low), float(high), n)


def read_statement(folder: Path, run: Run, suffix: str = "") -> Statement:
    """Return the statement about a run in the results of a dataset."""
    method, seed = run
    predictions = folder / method / f"seed{seed}" / "train_predictions.parquet"
    report = folder / NAME
    audit = folder / f"audit{suffix}.json"
    return state(
        run,
        str(predictions) if predictions.is_file() else None,
        read_fusion_report(report) if report.is_file() else None,
        read_audit(audit) if audit.is_file() else None,
    )
