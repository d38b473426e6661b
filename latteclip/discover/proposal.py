"""Proposed classes of images without class names, and what a person does to them.

Actions rename, merge or drop classes, or leave out their images as well. They are replayed on the
proposal in their order. Imports no torch. Letters: N images, C proposed classes.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError
from latteclip.core.files import ACTIONS, CLASSES, from_json
from latteclip.core.run_options import run_command
from latteclip.core.terminal import one_line
from latteclip.labels.votes import Ints

FILE = "proposed_classes.parquet"
MAX_NAME = 100  # characters of a class name
DROPPED, LEFT_OUT = -1, -2  # in place of the number of a class
PROPOSED = pa.schema(
    {
        "image_id": pa.string(),  # of a training image
        "class": pa.int32(),
    }
)


@dataclass(frozen=True)
class ProposalMetadata:
    """What is true of a whole proposal."""

    digest: str  # by which a person's actions know the proposal
    names: list[list[str]]  # of each class, the best first


@dataclass(frozen=True)
class Proposal:
    """Proposed classes of N images."""

    image_ids: list[str]
    labels: Ints  # [N]
    about: ProposalMetadata


def of_number(folder: Path, number: int) -> str:
    """Return the command that proposes a number of classes for a dataset."""
    target = f"results/{folder.absolute().name}/{CLASSES}"
    return run_command(folder, target, discover={"classes": number})


def read_proposal(path: str | Path) -> Proposal:
    """Read what `propose_classes` wrote."""
    table = tables.read(path)
    return Proposal(
        table["image_id"].to_pylist(),
        table["class"].to_numpy().astype(np.int64),
        tables.read_metadata(path, ProposalMetadata),
    )


@dataclass(frozen=True)
class Action:
    """What a person does to a class, which is known by its number."""

    do: Literal["rename", "merge", "drop", "leave_out"]
    of: int
    other: int = -1  # merge: the class that is taken into it
    name: str = ""  # rename


@dataclass(frozen=True)
class Actions:
    """What a person did to the classes of a proposal."""

    proposal: str  # its digest
    actions: list[Action]


def replay(
    about: ProposalMetadata, actions: Sequence[Action]
) -> tuple[dict[int, str], Ints]:
    """Return the classes after some actions: their names by number, and what became of each [C].

    UserError: an action that the classes do not allow.
    """
    names = {k: each[0] for k, each in enumerate(about.names)}
    owner = np.arange(len(names))
    for number, action in enumerate(actions, start=1):
        where = f"{ACTIONS}, action {number} ({action.do})"
        others = {action.other} if action.do == "merge" else set()
        if action.of not in names or not others <= names.keys() - {action.of}:
            raise UserError(
                f"{where} is about a class that is not there; undo it."
            )
        if action.do == "rename":
            names[action.of] = _new_name(names, action, where)
        elif action.do == "merge":
            owner[owner == action.other] = action.of
            del names[action.other]
        else:
            owner[owner == action.of] = (
                DROPPED if action.do == "drop" else LEFT_OUT
            )
            del names[action.of]
    return names, owner


def _new_name(names: dict[int, str], action: Action, where: str) -> str:
    """Return a name on one line that no other class has."""
    name = one_line(action.name, MAX_NAME)
    others = [
        clean_classname(other) for k, other in names.items() if k != action.of
    ]
    if not name or clean_classname(name) in others:
        raise UserError(f"{where}: the name {name!r} is empty or in use.")
    return name


def read_actions(path: str | Path, about: ProposalMetadata) -> list[Action]:
    """Read a person's actions. UserError: they belong to another proposal, or are no actions.

    A damaged file, which may be her only copy, gets another name.
    """
    if not Path(path).is_file():
        return []
    try:
        saved = from_json(Actions, Path(path).read_text("utf-8"), str(path))
    except (UserError, ValueError) as error:
        aside = f"{path}.damaged-{time.time_ns()}"
        os.replace(path, aside)
        raise UserError(
            f"{path} is damaged ({one_line(error)}). It is kept as {aside}: repair it and give it "
            "back its name, or begin again."
        ) from None
    if saved.actions and saved.proposal != about.digest:
        raise UserError(
            f"{path} belongs to other images or names, for the proposal of classes has changed. "
            "To keep the classes as they are, copy classes.txt beside it into the folder of the "
            f"images and leave class_names out; to begin again, rename {path}."
        )
    return saved.actions
