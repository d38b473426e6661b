"""Write the classes that were proposed for images, and what a person made of them."""

import logging
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record, write_text
from latteclip.core.terminal import one_line
from latteclip.discover.inputs import Discovery, read_actions, read_proposal
from latteclip.discover.names import Floats, Ints
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
BY_LOOKS = (
    "Names tell little about the looks of these images, so looks alone form the classes."
)
ALIKE = 3  # classes that look most alike, of each


def discover_classes(
    leaves_path: str,
    members_path: str,
    output: str,
    proposal_output: str,
    discovered_output: str,
    actions_path: str | None = None,
) -> None:
    """Write class names, one per line, the proposal as JSON, and the class of each image.

    UserError: a person's actions leave fewer than two classes.
    """
    discovery = read_proposal(leaves_path, members_path)
    actions = read_actions(actions_path, discovery) if actions_path else []
    state = replay(discovery.proposal, actions)
    if len(state.leaves) < 2:
        raise UserError(
            f"{actions_path} leaves fewer than two classes; undo some of its actions."
        )
    numbers = sorted(state.leaves)
    classes = [state.leaves[k] for k in numbers]
    labels = discovery.proposal.labels(classes)
    labels[np.isin(discovery.image_ids, sorted(state.none))] = -1
    names = [state.names[k] for k in numbers]
    record = DiscoveryRecord(
        proposal=discovery.digest,
        wanted=discovery.wanted,
        suggested=discovery.proposal.suggested,
        actions=len(actions),
        without_name=discovery.without_name,
        by_looks=discovery.proposal.by_looks,
        classes=_classes(discovery.proposal, state, labels),
        curve=_curve(discovery.proposal),
    )
    write_record(proposal_output, record)
    members = _members(discovery, classes, labels, names)
    tables.write(discovered_output, members, DISCOVERED)
    # The last, for without the proposal it would count as written by hand.
    write_text(output, "\n".join(names) + "\n")
    page = shlex.join(["latteclip", "classes", str(Path(output).parent)])
    looked = f"Nobody has looked at them. To look and to change them: {page}"
    if actions:
        looked = f"A person changed them by {len(actions)} actions."
    if discovery.proposal.by_looks:
        looked = f"{BY_LOOKS} {looked}"
    level = logging.INFO if actions else logging.WARNING
    log.log(
        level,
        "%d classes of %d images (%d suggested): %s. %s",
        len(names),
        len(labels),
        discovery.proposal.suggested,
        one_line(", ".join(names)),
        looked,
    )


def _members(
    discovery: Discovery, classes: list[list[int]], labels: Ints, names: list[str]
) -> dict[str, pa.Array | Floats | list[str]]:
    """Return the columns of DISCOVERED by labels [N] of images, -1 for none."""
    owner = np.full(len(discovery.terms), -1)
    for k, leaves in enumerate(classes):
        owner[leaves] = k
    near = owner[discovery.nearest]  # [N, k] the classes of the likeliest leaves
    is_own = near == labels[:, None]
    totals = np.zeros(near.shape, np.float32)  # probabilities of these classes
    for column in near.T:
        totals += discovery.probabilities * (near == column[:, None])
    has_class = labels >= 0
    is_of_class = is_own & has_class[:, None]
    confidence = (discovery.probabilities * is_of_class).sum(axis=1)
    others = np.where(is_own | (near < 0), 0, totals)
    every = np.arange(len(others))
    place = others.argmax(axis=1)
    second = near[every, place]
    is_missing = others[every, place] <= 0
    all_names = pa.array(names, pa.string())
    return {
        "image_id": discovery.image_ids,
        "classname": all_names.take(pa.array(labels, mask=~has_class)),
        "confidence": confidence.astype(np.float32),
        "second": all_names.take(pa.array(second, mask=is_missing)),
    }


def _classes(proposal: Proposal, state: State, labels: Ints) -> list[ProposedClass]:
    """Return each class with its names, its number of images, and the classes that look like it.

    Labels [N] are -1 for images of no class.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=len(state.leaves)).tolist()
    numbers = sorted(state.leaves)
    costs = proposal.costs([state.leaves[k] for k in numbers])
    np.fill_diagonal(costs, np.inf)
    above = parents(proposal)
    classes = []
    n_alike = min(ALIKE, len(numbers) - 1)
    for place, k in enumerate(numbers):
        alike = []
        for i in np.argsort(costs[place], kind="stable")[:n_alike]:
            cost = round(float(costs[place, i]), 3)
            alike.append(SimilarClass(state.names[numbers[i]], cost))
        names = []
        if k < len(proposal.names):
            names = [*map(ClassName, proposal.names[k], proposal.shares[k])]
        proposed = ProposedClass(
            name=state.names[k],
            images=sizes[place],
            alike=alike,
            names=names,
            kind_of=state.names.get(above[k]) if k in above else None,
        )
        classes.append(proposed)
    return classes


def _curve(proposal: Proposal) -> list[CurvePoint]:
    """Return the number of classes before each merge of groups, and the cost of the merge."""
    n_leaves = len(proposal.steps) + 1
    return [
        CurvePoint(n_leaves - done, round(step.cost, 3))
        for done, step in enumerate(proposal.steps)
        if step.cost
    ]
