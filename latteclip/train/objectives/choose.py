"""Objectives by the names that a configuration gives them: a new one is an entry here."""

from collections.abc import Callable, Mapping
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.settings import from_values
from latteclip.train.objectives.base import Objective, TrainingTexts
from latteclip.train.objectives.flyp import Flyp
from latteclip.train.objectives.latteclip import LatteClip, Switches
from latteclip.train.texts import TextBank

# Makes an objective from the texts of a training and its seed.
Maker = Callable[[TextBank, TrainingTexts, int], Objective]


def _flyp(switches: Mapping[str, Any]) -> Maker:
    """FLYP has no switches; a method that is `like` another one may inherit some."""
    return lambda bank, texts, seed: Flyp(bank, texts)


def _latteclip(switches: Mapping[str, Any]) -> Maker:
    chosen = from_values(Switches, switches, "switches")
    return lambda bank, texts, seed: LatteClip(bank, texts, chosen, seed)


OBJECTIVES: dict[str, Callable[[Mapping[str, Any]], Maker]] = {
    "flyp": _flyp,
    "flyp_supervised": _flyp,
    "latteclip": _latteclip,
}


def choose(name: str, switches: Mapping[str, Any]) -> Maker:
    """What makes the objective of that name, its switches checked.

    Raises:
        UserError: there is no such objective, or its switches do not fit.
    """
    if name not in OBJECTIVES:
        raise UserError(f"Objective {name!r} is none of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name](switches)
