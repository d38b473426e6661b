"""Classes that are proposed for images without class names, and a person's actions on them.

Actions rename, merge or drop classes, or leave out their images as well. They are replayed on the
proposal in their order.
Letters: N images, C proposed classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from latteclip.core import tables
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import DELETE, UserError
from latteclip.core.files import digest, read_object, write_json
from latteclip.discover import grouping
from latteclip.discover.grouping import Evidence
from latteclip.discover.names import Floats, Ints
from latteclip.discover.naming import name_classes

FILE = "proposed_classes.parquet"
MAX_NAME = 100  # characters of a class name
# In place of the number of a class: it was dropped, and its images were left out of the dataset.
DROPPED = -1
LEFT_OUT = -2
PROPOSED = pa.schema(
    {
        "image_id": pa.string(),  # of a training image
        "class": pa.int32(),
        "confidence": pa.float32(),  # probability of the class, by names and features
    }
)


@dataclass(frozen=True)
class ProposalMetadata:
    """What is true of a whole proposal."""

    digest: str  # by which a person's actions know the proposal
    names: list[list[str]]  # of each class, the best first
    by_names: bool  # False: features hardly predict names, and k-means began the classes


@dataclass(frozen=True)
class Proposal:
    """Proposed classes of N images."""

    image_ids: list[str]
    labels: Ints  # [N]
    confidence: Floats  # [N]
    about: ProposalMetadata


def propose(
    image_ids: list[str], evidence: Evidence, wanted: int | None = None
) -> Proposal:
    """Propose a number of classes, or None for as many as the costs of merges suggest."""
    first = grouping.groups(evidence, evidence.best)
    steps = grouping.merges(evidence, first)
    number = wanted or grouping.suggested_number(steps)
    if evidence.is_predictable:
        labels = grouping.cut(steps, first, number)
    else:
        labels = grouping.by_features(evidence, number)
    names = name_classes(labels, evidence.terms, int(labels.max()) + 1)
    texts = [*image_ids, str(names)]
    return Proposal(
        image_ids,
        labels,
        grouping.confidences(evidence, labels),
        ProposalMetadata(
            digest=digest(labels.tobytes(), "\n".join(texts).encode())[:32],
            names=names,
            by_names=evidence.is_predictable,
        ),
    )


def write_proposal(proposal: Proposal, path: str) -> None:
    """Write PROPOSED."""
    columns = {
        "image_id": proposal.image_ids,
        "class": proposal.labels.astype(np.int32),
        "confidence": proposal.confidence,
    }
    tables.write(path, columns, PROPOSED, proposal.about)


def read_proposal(path: str | Path) -> Proposal:
    """Read what `write_proposal` wrote."""
    table = tables.read(path, PROPOSED)
    return Proposal(
        table["image_id"].to_pylist(),
        table["class"].to_numpy().astype(np.int64),
        table["confidence"].to_numpy(),
        tables.read_metadata(path, ProposalMetadata),
    )


class Action(BaseModel, extra="forbid"):
    """What a person does to a class, which is known by its number."""

    do: Literal["rename", "merge", "drop", "leave_out"]
    of: int = Field(ge=0)
    other: int | None = Field(default=None, ge=0)  # merge: the class that is taken into it
    name: str | None = Field(default=None, max_length=10 * MAX_NAME)  # rename


@dataclass(frozen=True)
class Classes:
    """Classes after some actions: their names by number, and the number of each proposed class."""

    names: dict[int, str]
    owner: Ints  # [C], DROPPED or LEFT_OUT for none

    def labels(self, proposal: Proposal) -> Ints:
        """Return the number [N] of the class of each image, DROPPED or LEFT_OUT for none."""
        labels: Ints = self.owner[proposal.labels]
        return labels


def replay(about: ProposalMetadata, actions: Sequence[Action], where: str) -> Classes:
    """Return the classes after some actions. UserError: an action that the classes do not allow."""
    names = {k: each[0] for k, each in enumerate(about.names)}
    owner = np.arange(len(names))
    for number, action in enumerate(actions, start=1):
        for k in (action.of, action.other):
            if k is not None and k not in names:
                raise UserError(f"{where}: there is no class {k} for action {number}.")
        if action.do == "rename":
            names[action.of] = _new_name(names, action, f"{where}, action {number}")
        elif action.do in ("drop", "leave_out"):
            owner[owner == action.of] = DROPPED if action.do == "drop" else LEFT_OUT
            del names[action.of]
        elif action.other in (None, action.of):
            raise UserError(f"{where}: action {number} names no other class to merge.")
        else:
            owner[owner == action.other] = action.of
            del names[action.other]
    return Classes(names, owner)


def _new_name(names: dict[int, str], action: Action, where: str) -> str:
    """Return a name on one line, of at most MAX_NAME characters, that no other class has."""
    wanted = action.name or ""
    plain = "".join(letter if letter.isprintable() else " " for letter in wanted)
    name = " ".join(plain.split())[:MAX_NAME].strip()
    others = [clean_classname(other) for k, other in names.items() if k != action.of]
    if not name or clean_classname(name) in others:
        raise UserError(f"{where}: the name {wanted[:MAX_NAME]!r} is empty or in use.")
    return name


def read_actions(path: str | Path, about: ProposalMetadata) -> list[Action]:
    """Read a person's actions. UserError: they belong to another proposal, or are no actions."""
    saved = read_object(path, ("actions",), DELETE) if Path(path).is_file() else {}
    try:
        actions = TypeAdapter(list[Action]).validate_python(saved.get("actions", []))
    except ValidationError:
        raise UserError(
            f"{path} has other actions than `latteclip classes` writes; delete it."
        ) from None
    if actions and saved.get("proposal") != about.digest:
        raise UserError(
            f"{path} belongs to other images or names, for the proposal of classes has changed. "
            "To keep the classes as they are, copy classes.txt beside it into the folder of the "
            f"images and leave class_names out; to begin again, delete {path}."
        )
    return actions


def write_actions(
    path: str | Path, about: ProposalMetadata, actions: Sequence[Action]
) -> None:
    """Write a person's actions, from which the classes follow."""
    values = [action.model_dump(exclude_none=True) for action in actions]
    write_json(path, {"proposal": about.digest, "actions": values})
