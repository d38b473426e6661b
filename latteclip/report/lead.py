"""The model that a page is about: the chosen one, how good it is, and the command that uses it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.evaluate.audited import Accuracy, Audit
from latteclip.evaluate.results import Selection
from latteclip.report.runs import RunFiles

ZERO_SHOT = "zero_shot"


@dataclass(frozen=True)
class Lead:
    """The model of a page, in percent and points; None where not known."""

    method: str
    seed: int
    seeds: int  # runs of its method
    is_chosen: bool  # by select_model
    acc1: float | None
    gain: float | None  # over zero-shot CLIP
    audited: Accuracy | None  # by a person's answers
    command: str | None  # that classifies photos with it

    @property
    def is_zero_shot(self) -> bool:
        """Whether it is the pretrained model, with which the page compares."""
        return self.method == ZERO_SHOT


def main_run(run_files: Sequence[RunFiles], selection: Selection | None, fallback: str) -> RunFiles:
    """The chosen run; where none is chosen, the first of a method."""
    if selection:
        for run in run_files:
            if (run.method, run.seed) == selection.run:
                return run
    return next((run for run in run_files if run.method == fallback), run_files[0])


def lead(
    run: RunFiles,
    metrics: Sequence[Mapping[str, Any]],
    zero_shot: float | None,
    selection: Selection | None,
    audit: Audit | None,
    folder: str,
    suffix: str,
) -> Lead:
    """What a page says first.

    Args:
        run: that the page is about.
        metrics: of all runs of the dataset.
        zero_shot: acc1 of the pretrained model, as a fraction.
        selection: the chosen model, where one was chosen.
        audit: what a person's answers say.
        folder: results/<dataset>.
        suffix: of the chosen model's folder there.
    """
    of_method = [one for one in metrics if one["method"] == run.method]
    acc1 = next((one["acc1"] for one in of_method if one["seed"] == run.seed), None)
    is_chosen = selection is not None and selection.run == (run.method, run.seed)
    model = None
    if is_chosen:
        model = f"{folder}/model{suffix}" if suffix else folder
    elif run.gallery:
        model = f"{folder}/{run.method}/seed{run.seed}/model"
    return Lead(
        method=run.method,
        seed=run.seed,
        seeds=len(of_method),
        is_chosen=is_chosen,
        acc1=None if acc1 is None else 100 * acc1,
        gain=None if acc1 is None or zero_shot is None else 100 * (acc1 - zero_shot),
        audited=audit.accuracy(run.method, run.seed) if audit else None,
        command=model and f"latteclip predict {shlex.quote(model)} photos",
    )
