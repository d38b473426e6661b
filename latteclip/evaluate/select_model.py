"""The model of a dataset that people take: chosen without labels among those of the run.

Letters: K candidates, n judged images, C classes.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.files import replacing, write_json
from latteclip.evaluate import judged
from latteclip.evaluate.results import read_metrics
from latteclip.evaluate.selection import (
    FEWEST,
    Candidate,
    Judge,
    choose,
    rank_correlation,
    reason,
    reference,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateFiles:
    """A run whose model may be chosen."""

    method: str
    seed: int
    objective: str
    from_votes: bool  # whether captions or class scores helped to make its labels
    metrics: str
    judged: str  # its JUDGED table
    model: str  # folder


def select_model(
    dataset: str,
    runs: Sequence[CandidateFiles],
    votes_path: str | None,
    output: str,
    model_output: str,
) -> None:
    """Choose a model by votes for the images that were left out; copy it, and say why.

    Accuracies are read to tell, beside the choice, what it cost; the choice is made before.

    Args:
        dataset: its key.
        runs: the K candidates.
        votes_path: a VOTES table; None where nothing votes.
        output: the JSON file that says what was chosen and why.
        model_output: folder that gets the model; files are hard links where that is possible.

    Raises:
        UserError: a file is missing or does not fit the others.
    """
    metrics = [read_metrics(run.metrics) for run in runs]
    candidates = [
        Candidate(run.method, run.seed, run.objective, tuple(values["marks"]), run.from_votes)
        for run, values in zip(runs, metrics, strict=True)
    ]
    judge = _judge(runs, votes_path)
    chosen = choose(candidates, judge)
    why = reason(candidates, chosen, judge)
    accuracies = [values["acc1"] for values in metrics]
    with replacing(model_output) as folder:
        # Hidden files are Snakemake's own.
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(runs[chosen].model, folder, copy_function=_link, ignore=hidden)
    write_json(
        output,
        {
            "dataset": dataset,
            "method": runs[chosen].method,
            "seed": runs[chosen].seed,
            "reason": why,
            "candidates": _told(candidates, accuracies, judge),
            **_cost(candidates, accuracies, chosen, judge),
        },
    )
    log.info("%s: %s", dataset, why)


def _judge(runs: Sequence[CandidateFiles], votes_path: str | None) -> Judge | str:
    """The judge, or why there is none."""
    if votes_path is None:
        return "this run has neither captions of images nor class scores"
    table, described = tables.read(votes_path, tables.VOTES)
    if described["told"]:
        return "the captions were asked for with zero-shot labels in the prompt"
    if not described["corroborated"]:
        return f"the {described['votes']} agree with the images no better than any others would"
    if len(table) < FEWEST:
        return f"it takes {FEWEST} images with votes, and there are {len(table)}"
    votes = pc.list_flatten(table["vote"]).to_numpy().reshape(len(table), -1)  # [n, C]
    found = Judge.of(
        votes.astype(np.float64),
        [
            judged.read_predictions(run.judged, table["image_id"], described["classnames"])
            for run in runs
        ],
    )
    if not any(found.judges(i) for i in range(len(runs))):
        return "all of them were trained, and no image was left out (selection.share)"
    return found


def _told(
    candidates: Sequence[Candidate], accuracies: Sequence[float | None], judge: Judge | str
) -> list[dict[str, Any]]:
    """What is known of each candidate, in the order of the run."""
    agreements = _agreements(candidates, judge)
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(candidates):
        lead = None
        if isinstance(judge, Judge) and agreements[i] is not None:
            lead = judge.lead(i, reference(candidates, judge))._asdict()
        rows.append(
            {
                "method": one.method,
                "seed": one.seed,
                "marks": list(one.marks),
                "agreement": agreements[i],
                "lead": lead,  # over the reference
                "acc1": accuracies[i],
            }
        )
    return rows


def _agreements(candidates: Sequence[Candidate], judge: Judge | str) -> list[float | None]:
    """How far each agrees with the votes, for all on one scale; None where it was not judged."""
    if isinstance(judge, str):
        return [None] * len(candidates)
    start = reference(candidates, judge)
    return [judge.agreement(i, start) if judge.judges(i) else None for i in range(len(candidates))]


def _cost(
    candidates: Sequence[Candidate],
    accuracies: Sequence[float | None],
    chosen: int,
    judge: Judge | str,
) -> dict[str, float | None]:
    """By how many points another candidate was better, and how agreement went with accuracy.

    Both are null where test labels are not known.
    """
    known = [value for value in accuracies if value is not None]
    own = accuracies[chosen]
    if own is None or len(known) < len(accuracies):
        return {"regret": None, "rank_correlation": None}
    pairs = zip(_agreements(candidates, judge), known, strict=True)
    judged_ones = [(one, other) for one, other in pairs if one is not None]
    correlation = rank_correlation(
        [one for one, _ in judged_ones], [other for _, other in judged_ones]
    )
    return {"regret": 100 * (max(known) - own), "rank_correlation": correlation}


def _link(source: str, destination: str) -> None:
    """The same file under another name, or a copy where the file system has no such links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
