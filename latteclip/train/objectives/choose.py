"""Objectives by the names that a configuration gives them: a new one is an entry here.

An objective is a module of this folder with a function `maker`. The module is imported by its name:
an edit of it reruns the trainings under this objective, and no other.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from latteclip.core.errors import UserError
from latteclip.train.objectives.base import Maker

# Where "supervised" is added to a name, the same objective is given the true labels.
OBJECTIVES = ("flyp", "flyp_supervised", "latteclip")


def choose(name: str, switches: Mapping[str, Any]) -> Maker:
    """What makes the objective of that name, its switches checked.

    Raises:
        UserError: there is no such objective, or its switches do not fit.
    """
    if name not in OBJECTIVES:
        raise UserError(f"Objective {name!r} is none of {', '.join(OBJECTIVES)}.")
    own = name.removesuffix("_supervised")
    module = importlib.import_module(f"latteclip.train.objectives.{own}")
    maker: Maker = module.maker(switches)
    return maker
