"""Score a person's answers whenever an answer or a model changed."""

import logging
from collections.abc import Sequence
from pathlib import Path

from latteclip.audit.sampling import RunFiles, read_plan
from latteclip.audit.score import read_predictions, score
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.evaluate.results import Audit

log = logging.getLogger(__name__)


def score_audit(
    dataset: str,
    images_path: str,
    plan_path: str,
    answers_path: str,
    runs: Sequence[RunFiles],
    output: str,
) -> None:
    """Write an `Audit` as JSON. Without enough answers, `sentence` gives the reason."""
    try:
        plan = read_plan(plan_path, *tables.read_unlabelled(images_path, training=False))
        saved = plan.schema(dataset).read(Path(answers_path))
        saved.warn(answers_path, Path(answers_path).parents[2])
        audit = score(dataset, plan, read_predictions(dataset, plan, runs), saved.asked)
    except UserError as error:  # answers about other images stop no run of the workflow
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, 0, 0, "", str(error), [], [])
    write_record(output, audit)
    log.info("%s: %s", dataset, audit.sentence)
