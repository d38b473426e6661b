"""Which engines score choices, and how one is started.

A scorer is a module of this folder that is called as its engine is, with a class in it: an engine
whose answers are scores (`scores.as_answer`). It is imported by its name, so that an edit reruns
the scores of this engine alone.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from latteclip.captions.class_questions import LIKELIHOOD, RowScores
from latteclip.captions.engines.base import OWN, Captioner, CaptionerSettings
from latteclip.core.errors import UserError

CLASSES = {
    "vllm": "VllmScorer",
    "openai": "OpenaiScorer",
    "transformers": "TransformersScorer",
    OWN: "OwnScores",
}


def start(settings: CaptionerSettings, threads: int) -> Captioner:
    """Start the engine that the settings name, to be asked about one picture at a time.

    Raises:
        UserError: a model that is not there, or an engine that does not start.
    """
    scorer: Captioner = _class_of(settings.engine)(settings, threads, 1)
    return scorer


def own_scores(path: str | None, classnames: Sequence[str]) -> Callable[[str], RowScores]:
    """The scores that the user brings along, by image_id.

    Raises:
        UserError: no such file, or another form.
    """
    own: Callable[[str], RowScores] = _class_of(OWN)(path, classnames)
    return own


def check(engine: str, kind: str) -> None:
    """Refuse, before anything is read, a kind of scores that an engine cannot give."""
    if engine == "openai" and kind == LIKELIHOOD:
        raise UserError(
            "captioner.engine openai gives no likelihoods, for a server tells the probabilities of "
            "its own words alone; set scores.kind to multiple_choice, or captioner.engine to vllm "
            "or transformers."
        )


def _class_of(engine: str) -> Any:
    module = importlib.import_module(f"latteclip.captions.scorers.{engine}")
    return getattr(module, CLASSES[engine])
