"""Propose the classes of images that have no class names, and apply what a person did to them."""

import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.config.sections.base import AUTO
from latteclip.config.sections.discover import DiscoverSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record, write_text
from latteclip.core.terminal import one_line
from latteclip.discover import grouping
from latteclip.discover.inputs import Discovery, discover, read_actions
from latteclip.discover.proposal import Proposal, State, parents, replay
from latteclip.discover.records import (
    DISCOVERED,
    ClassName,
    CurvePoint,
    DiscoveryRecord,
    ProposedClass,
    SimilarClass,
)

log = logging.getLogger(__name__)
ALIKE = 3  # classes that look most alike, of each


def discover_classes(
    images_path: str,
    names_path: str,
    looks_path: str,
    settings: DiscoverSection,
    output: str,
    proposal_output: str,
    members_output: str,
    actions_path: str | None = None,
) -> None:
    """Write class names, one per line, the proposal as JSON, and the class of each image.

    UserError: the images have fewer than two classes.
    """
    wanted = None if settings.classes == AUTO else settings.classes
    found = discover(images_path, names_path, looks_path, wanted)
    actions = read_actions(actions_path, found) if actions_path else []
    state = replay(found.proposal, actions)
    if len(state.leaves) < 2:
        raise UserError(
            f"{actions_path} leaves fewer than two classes; undo some of its actions."
        )
    numbers = sorted(state.leaves)
    labels = found.proposal.labels([state.leaves[k] for k in numbers])
    is_none = np.isin(found.image_ids, sorted(state.none))
    names = [state.names[k] for k in numbers]
    record = DiscoveryRecord(
        proposal=found.digest,
        wanted=wanted,
        suggested=found.proposal.suggested,
        actions=len(actions),
        without_name=int((found.evidence.best < 0).sum()),
        classes=_classes(found.proposal, state),
        curve=_curve(found.proposal),
    )
    write_record(proposal_output, record)
    members = _members(found, np.where(is_none, -1, labels), names)
    tables.write(members_output, members, DISCOVERED)
    # The last, for without the proposal it would count as written by hand.
    write_text(output, "\n".join(names) + "\n")
    looked = "Nobody has looked at them."
    if actions:
        looked = f"A person changed them by {len(actions)} actions."
    level = logging.INFO if actions else logging.WARNING
    log.log(
        level,
        "%d classes of %d images (%d suggested): %s. %s",
        len(names),
        len(labels),
        found.proposal.suggested,
        one_line(", ".join(names)),
        looked,
    )


def _members(
    found: Discovery, labels: grouping.Ints, names: list[str]
) -> dict[str, pa.Array | npt.NDArray[np.float32] | list[str]]:
    """Return the columns of DISCOVERED."""
    filled = np.where(labels < 0, 0, labels)
    used = np.unique(filled)
    place = np.full(len(names), -1)
    place[used] = np.arange(len(used))
    own = place[filled]
    again = grouping.regroup(found.evidence, own)
    is_same = again.labels == own
    others = used[np.where(is_same, again.second, again.labels)]
    confidence = np.where(is_same, again.confidence, 1 - again.confidence)
    all_names = pa.array(names, pa.string())
    return {
        "image_id": found.image_ids,
        "classname": all_names.take(pa.array(labels, mask=labels < 0)),
        "confidence": confidence.astype(np.float32),
        "second": all_names.take(pa.array(others, mask=others == filled)),
    }


def _classes(proposal: Proposal, state: State) -> list[ProposedClass]:
    """Return each class with its names, its number of images, and the classes that look like it."""
    numbers = sorted(state.leaves)
    costs = proposal.costs([state.leaves[k] for k in numbers])
    np.fill_diagonal(costs, np.inf)
    above = parents(proposal)
    classes = []
    for place, k in enumerate(numbers):
        nearest = np.argsort(costs[place], kind="stable")[: min(ALIKE, len(numbers) - 1)]
        alike = [
            SimilarClass(state.names[numbers[i]], round(float(costs[place, i]), 3))
            for i in nearest
        ]
        names = []
        if k < len(proposal.names):
            pairs = zip(proposal.names[k], proposal.shares[k], strict=True)
            names = [ClassName(name, share) for name, share in pairs]
        n_images = int(proposal.sizes[state.leaves[k]].sum())
        kind_of = state.names.get(above[k]) if k in above else None
        classes.append(ProposedClass(state.names[k], n_images, alike, names, kind_of))
    return classes


def _curve(proposal: Proposal) -> list[CurvePoint]:
    """Return the number of classes before each merge of groups, and the cost of the merge."""
    n_leaves = len(proposal.steps) + 1
    return [
        CurvePoint(n_leaves - done, round(step.cost, 3))
        for done, step in enumerate(proposal.steps)
        if step.cost
    ]
