"""A person's answers scored: how often each run is right, and which differences are decided.

Answers stay as they are when models change, and a score takes a second. So the workflow scores them
whenever an answer or a model changed.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from latteclip.audit import draw
from latteclip.audit.answers import Answers
from latteclip.audit.score import RunFiles, asked, scored
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.evaluate.results import Audit

log = logging.getLogger(__name__)


def score_audit(
    dataset: str, plan_path: str, answers_path: str, runs: Sequence[RunFiles], output: str
) -> None:
    """Write what the answers say of every run, and of every pair of runs, as audit.json.

    The file is an `Audit` as JSON (latteclip/evaluate/results.py). Of each run it has
    `accuracies[]`: method, seed, value, low, high, can_be_chosen. Of each pair of runs, once, it
    has `comparisons[]`: method and seed of one run, other and other_seed of the other run, value
    (accuracy of the first minus that of the second), low and high of its 95 % interval, decided
    (the interval leaves out zero), and more (how many further answers may decide). Figures are
    fractions. Both lists are empty where the answers say nothing; `sentence` says why.

    Args:
        dataset: its key.
        plan_path: the order in which the images were drawn.
        answers_path: the answers about them.
        runs: what is scored.
        output: the JSON file.
    """
    try:
        plan = draw.read(plan_path)
        answers = Answers(Path(answers_path), asked(dataset, plan))
        audit = scored(dataset, plan, answers.standing(), runs)
    except UserError as error:  # answers to other images stop no run of the workflow
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, 0, 0, "", str(error), [], [])
    write_json(output, asdict(audit))
    log.info("%s: %s", dataset, audit.sentence)
