"""The model of a dataset that people take: chosen without labels among those of the run.

Letters: K candidates, n images with votes, C classes.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.files import replacing, write_json
from latteclip.evaluate import judged
from latteclip.evaluate.audited import Audit, read_audit
from latteclip.evaluate.results import read_metrics
from latteclip.evaluate.selection import (
    FEWEST_UNTRAINED,
    Candidate,
    Choice,
    Judge,
    choose,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateFiles:
    """A run whose model may be chosen."""

    method: str
    seed: int
    objective: str
    metrics: str
    judged: str  # its JUDGED table
    model: str  # folder


def select_model(
    dataset: str,
    runs: Sequence[CandidateFiles],
    votes_path: str | None,
    audit_path: str | None,
    output: str,
    model_output: str,
) -> None:
    """Choose a model by votes and a person's answers; copy it, and say why.

    Accuracies are read to tell, beside the choice, what it cost; the choice is made before.

    Args:
        dataset: its key.
        runs: the K candidates.
        votes_path: a VOTES table; None where nothing votes.
        audit_path: what `score_audit` wrote; None where no person answered.
        output: the JSON file that says what was chosen and why.
        model_output: folder that gets the model; files are hard links where that is possible.

    Raises:
        UserError: a file is missing or does not fit the others.
    """
    metrics = [read_metrics(run.metrics) for run in runs]
    candidates = [
        Candidate(run.method, run.seed, run.objective, tuple(values["marks"]))
        for run, values in zip(runs, metrics, strict=True)
    ]
    judge = read_judge(runs, votes_path)
    audit = read_audit(audit_path) if audit_path else None
    choice = choose(candidates, judge, audit)
    accuracies = [values["acc1"] for values in metrics]
    chosen = runs[choice.index]
    with replacing(model_output) as folder:
        # Hidden files are Snakemake's own.
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(chosen.model, folder, copy_function=_link, ignore=hidden)
    reference = candidates[choice.reference]
    write_json(
        output,
        {
            "dataset": dataset,
            "method": chosen.method,
            "seed": chosen.seed,
            "reason": choice.reason,
            "by": choice.by,
            "reference": {"method": reference.method, "seed": reference.seed},
            "candidates": _rows(candidates, accuracies, choice, judge, audit),
            "regret": _regret(accuracies, choice.index),
        },
    )
    log.info("%s: %s %s", dataset, chosen.method, choice.reason)


def read_judge(runs: Sequence[CandidateFiles], votes_path: str | None) -> Judge | str:
    """Return the votes and what each run predicts for their images, or why nothing judges."""
    if votes_path is None:
        return "this run has neither captions of images nor class scores"
    table, described = tables.read(votes_path, tables.VOTES)
    if described["told"]:
        return "the captions were asked for with zero-shot labels in the prompt"
    if not described["corroborated"]:
        return f"the {described['votes']} agree with the images no better than any others would"
    if len(table) < FEWEST_UNTRAINED:
        return f"it takes {FEWEST_UNTRAINED} images with votes, and there are {len(table)}"
    shares = pc.list_flatten(table["vote"]).to_numpy().reshape(len(table), -1)  # [n, C]
    predictions = [
        judged.read_predictions(run.judged, table["image_id"], described["classnames"])
        for run in runs
    ]
    return Judge(shares, np.stack(predictions), described["votes"])


def _rows(
    candidates: Sequence[Candidate],
    accuracies: Sequence[float | None],
    choice: Choice,
    judge: Judge | str,
    audit: Audit | None,
) -> list[dict[str, Any]]:
    """Return what is known of each candidate, in the order of the run."""
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(candidates):
        votes = answers = None
        if isinstance(judge, Judge) and judge.images(i):
            votes = {
                "images": judge.images(i),
                "with_reference": judge.pooled(candidates).compare(i, choice.reference)._asdict(),
            }
        if audit and (accuracy := audit.accuracy(*one.run)) and accuracy.run == one.run:
            answers = {key: asdict(accuracy)[key] for key in ("value", "low", "high")}
        rows.append(
            {
                "method": one.method,
                "seed": one.seed,
                "marks": list(one.marks),
                "votes": votes,
                "answers": answers,
                "acc1": accuracies[i],
            }
        )
    return rows


def _regret(accuracies: Sequence[float | None], chosen: int) -> float | None:
    """Return by how many points another candidate was better; None without test labels."""
    known = [value for value in accuracies if value is not None]
    own = accuracies[chosen]
    if own is None or len(known) < len(accuracies):
        return None
    return 100 * (max(known) - own)


def _link(source: str, destination: str) -> None:
    """The same file under another name, or a copy where the file system has no such links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
