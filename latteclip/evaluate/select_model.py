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
from latteclip.core.holdout import FEWEST
from latteclip.evaluate import held_out
from latteclip.evaluate.results import read_metrics
from latteclip.evaluate.selection import (
    Candidate,
    Judge,
    choose,
    rank_correlation,
    reason,
    standard_error,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateFiles:
    """A run whose model may be chosen."""

    method: str
    seed: int
    objective: str
    metrics: str
    held_out: str  # its HELD_OUT table
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
        Candidate(run.method, run.seed, run.objective, tuple(values["marks"]))
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
            "images": 0 if isinstance(judge, str) else judge.n,
            "candidates": _told(candidates, accuracies, judge),
            **_cost(accuracies, chosen, judge),
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
        return (
            f"{len(table)} images with votes were left out, but it takes {FEWEST} (selection.share)"
        )
    votes = pc.list_flatten(table["vote"]).to_numpy().reshape(len(table), -1)  # [n, C]
    image_ids = table["image_id"].to_pylist()
    return Judge.of(
        votes.astype(np.float64),
        [
            held_out.read_predictions(run.held_out, image_ids, described["classnames"])
            for run in runs
        ],
    )


def _told(
    candidates: Sequence[Candidate], accuracies: Sequence[float | None], judge: Judge | str
) -> list[dict[str, Any]]:
    """What is known of each candidate, in the order of the run."""
    rows: list[dict[str, Any]] = []
    for i, (one, acc1) in enumerate(zip(candidates, accuracies, strict=True)):
        agreement = error = None
        if isinstance(judge, Judge):
            agreement, error = float(judge.means[i]), standard_error(judge.agreements[i])
        rows.append(
            {
                "method": one.method,
                "seed": one.seed,
                "marks": list(one.marks),
                "agreement": agreement,
                "standard_error": error,
                "acc1": acc1,
            }
        )
    return rows


def _cost(
    accuracies: Sequence[float | None], chosen: int, judge: Judge | str
) -> dict[str, float | None]:
    """By how many points another candidate was better, and how agreement went with accuracy.

    Both are null where test labels are not known.
    """
    known = [value for value in accuracies if value is not None]
    own = accuracies[chosen]
    if own is None or len(known) < len(accuracies):
        return {"regret": None, "rank_correlation": None}
    together = None if isinstance(judge, str) else rank_correlation([*judge.means], known)
    return {"regret": 100 * (max(known) - own), "rank_correlation": together}


def _link(source: str, destination: str) -> None:
    """The same file under another name, or a copy where the file system has no such links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
