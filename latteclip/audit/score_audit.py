"""Score a person's answers whenever an answer or a model changed.

Answers stay as they are when models change, and a score takes a second.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from latteclip.audit.sampling import read_plan
from latteclip.audit.score import RunFiles, read_predictions, score
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.evaluate.results import Audit
from latteclip.labels.answers import read_answers

log = logging.getLogger(__name__)


def score_audit(
    dataset: str, plan_path: str, answers_path: str, runs: Sequence[RunFiles], output: str
) -> None:
    """Write the accuracy of every run and the difference of every pair as audit.json.

    The file is an `Audit` as JSON (latteclip/evaluate/results.py). Of each run it has
    `accuracies[]`: method, seed, value, low, high, can_be_chosen. Of each pair of runs, once, it
    has `comparisons[]`: method and seed of one run, other and other_seed of the other run, value
    (accuracy of the first minus that of the second), low and high of its 95 % interval, decided
    (the interval leaves out zero), and more (how many further answers may decide). Figures are
    fractions. Both lists are empty where the answers decide nothing. `sentence` says why.
    """
    try:
        plan = read_plan(plan_path)
        answers, _ = read_answers(Path(answers_path), plan.schema(dataset))
        audit = score(dataset, plan, read_predictions(dataset, plan, runs), answers)
    except UserError as error:  # answers about other images stop no run of the workflow
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, 0, 0, "", str(error), [], [])
    write_json(output, asdict(audit))
    log.info("%s: %s", dataset, audit.sentence)
