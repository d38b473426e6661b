"""Propose the classes of images that have no class names, and apply what a person did to them."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_json, write_text
from latteclip.core.terminal import one_line
from latteclip.discover import grouping
from latteclip.discover.inputs import Discovery, DiscoverySettings, discover, read_actions
from latteclip.discover.proposal import State, parents, replay

log = logging.getLogger(__name__)
DISCOVERED = pa.schema(
    {
        "image_id": pa.string(),  # of a training image
        "classname": pa.string(),  # null for none
        "confidence": pa.float32(),  # of its class, by names and looks
        "second": pa.string(),  # the class that is likeliest beside it; null for none
    }
)
ALIKE = 3  # classes that look most alike, of each
DOUBTFUL = 0.5


def discover_classes(
    images_path: str,
    names_path: str,
    looks_path: str,
    settings: DiscoverySettings,
    output: str,
    proposal_output: str,
    members_output: str,
    actions_path: str | None = None,
) -> None:
    """Write class names, one per line, the proposal as JSON, and the class of each image.

    UserError: the images have fewer than two classes.
    """
    found = discover(images_path, names_path, looks_path, settings)
    actions = read_actions(actions_path, found) if actions_path else []
    state = replay(found.proposal, actions)
    if len(state.leaves) < 2:
        raise UserError(f"{actions_path} leaves fewer than two classes; undo some of its actions.")
    numbers = sorted(state.leaves)
    labels = found.proposal.labels([state.leaves[k] for k in numbers])
    is_none = np.isin(found.image_ids, sorted(state.none))
    names = [state.names[k] for k in numbers]
    write_text(output, "\n".join(names) + "\n")
    write_json(proposal_output, _described(found, state, len(actions)))
    members = _members(found, np.where(is_none, -1, labels), names)
    tables.write(members_output, members, DISCOVERED)
    n = len(actions)
    looked = f"A person changed them by {n} actions." if n else "Nobody has looked at them."
    log.info(
        "%d classes of %d images (%d suggested): %s. %s",
        *(len(names), len(labels), found.proposal.suggested, one_line(", ".join(names)), looked),
    )


def _members(found: Discovery, labels: grouping.Ints, names: list[str]) -> pa.Table:
    """Return the rows of DISCOVERED."""
    filled = np.where(labels < 0, 0, labels)
    used = np.unique(filled)
    place = np.full(len(names), -1)
    place[used] = np.arange(len(used))
    again = grouping.regroup(found.evidence, place[filled])
    others = np.where(again.labels == place[filled], again.second, again.labels)
    confidence = np.where(again.labels == place[filled], again.confidence, 1 - again.confidence)
    row_names = [None if k < 0 else names[k] for k in labels]
    pairs = zip(used[others], filled, strict=True)
    second = [None if k == label else names[k] for k, label in pairs]
    columns = {
        "image_id": found.image_ids,
        "classname": row_names,
        "confidence": confidence.astype(np.float32),
        "second": second,
    }
    return pa.table(columns, DISCOVERED)


def _described(found: Discovery, state: State, n_actions: int) -> Mapping[str, Any]:
    """Return the proposal: names, members, what looks alike, and the curve of merges."""
    proposal, sizes = found.proposal, found.proposal.sizes
    numbers = sorted(state.leaves)
    costs = proposal.costs([state.leaves[k] for k in numbers])
    np.fill_diagonal(costs, np.inf)
    above = parents(proposal)
    classes = []
    for place, k in enumerate(numbers):
        near = np.argsort(costs[place], kind="stable")[: min(ALIKE, len(numbers) - 1)]
        one: dict[str, Any] = {
            "name": state.names[k],
            "images": int(sizes[state.leaves[k]].sum()),
            "alike": [[state.names[numbers[i]], round(float(costs[place, i]), 3)] for i in near],
        }
        if k < len(proposal.names):
            pairs = zip(proposal.names[k], proposal.shares[k], strict=True)
            one["names"] = [[name, share] for name, share in pairs]
        if k in above and above[k] in state.names:
            one["kind_of"] = state.names[above[k]]
        classes.append(one)
    n_leaves = len(proposal.steps) + 1
    curve = [[n_leaves - i, round(s.cost, 3)] for i, s in enumerate(proposal.steps) if s.cost]
    return {
        "proposal": found.digest,
        "settings": {"classes": found.classes},
        "suggested": proposal.suggested,
        "actions": n_actions,
        "without_name": int((found.evidence.best < 0).sum()),
        "classes": classes,
        "curve": curve,  # number of classes, and the relative cost of the next merge
    }
