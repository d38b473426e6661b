"""Write the classes that were proposed for images, after a person's actions."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latteclip.core.errors import UserError
from latteclip.core.files import write_record, write_text
from latteclip.core.terminal import counted, one_line
from latteclip.discover.proposal import LEFT_OUT, read_actions, read_proposal, replay

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiscoveredClass:
    """A class after a person's actions."""

    name: str
    images: int


@dataclass(frozen=True)
class DiscoveryRecord:
    """The content of discovery.json."""

    proposal: str  # digest
    actions: int  # of a person; 0: nobody has looked
    classes: list[DiscoveredClass]
    left_out: list[str]  # images that a person left out of the dataset


def discover_classes(
    proposed_path: str,
    output: str,
    proposal_output: str,
    actions_path: str | None = None,
) -> None:
    """Write class names, one per line, and the proposal as JSON.

    UserError: a person's actions leave fewer than two classes.
    """
    proposal = read_proposal(proposed_path)
    about = proposal.about
    actions = read_actions(actions_path, about) if actions_path else []
    classes = replay(about, actions, str(actions_path))
    if len(classes.names) < 2:
        raise UserError(
            f"{actions_path} leaves fewer than two classes; undo some of its actions."
        )
    names = [*classes.names.values()]
    labels = classes.labels(proposal)
    sizes = [
        DiscoveredClass(name, int(np.count_nonzero(labels == k)))
        for k, name in classes.names.items()
    ]
    left_out = [proposal.image_ids[row] for row in np.flatnonzero(labels == LEFT_OUT)]
    record = DiscoveryRecord(about.digest, len(actions), sizes, left_out)
    write_record(proposal_output, record)
    # The last, for without the proposal it would count as written by hand.
    write_text(output, "\n".join(names) + "\n")
    page = shlex.join(["latteclip", "classes", str(Path(output).parent)])
    changed = f"A person made {counted(len(actions), 'change')}."
    log.log(
        logging.INFO if actions else logging.WARNING,
        "%d classes of %d images: %s.%s %s",
        len(names),
        len(labels),
        one_line(", ".join(names)),
        ""
        if about.by_names
        else " Names do not fit the image features, so k-means was used.",
        changed
        if actions
        else f"Nobody has checked them. To check and change them: {page}",
    )
