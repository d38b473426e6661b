"""Write the classes that were proposed for images, after a person's actions."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record, write_text
from latteclip.core.terminal import counted, one_line
from latteclip.discover.proposal import (
    Classes,
    Proposal,
    read_actions,
    read_proposal,
    replay,
)

log = logging.getLogger(__name__)
DISCOVERED = pa.schema(
    {
        "image_id": pa.string(),  # of a training image
        "classname": pa.string(),  # null for none
        "confidence": pa.float32(),  # of the proposed class, by names and features
    }
)


@dataclass(frozen=True)
class ClassName:
    """A name of a class, and the share of the class's images that have it."""

    name: str
    share: float


@dataclass(frozen=True)
class DiscoveredClass:
    """A class after a person's actions."""

    name: str
    images: int
    proposed: list[ClassName]  # names, the best first


@dataclass(frozen=True)
class DiscoveryRecord:
    """The content of discovery.json."""

    proposal: str  # digest
    wanted: int | None  # the number of classes by the configuration; None: as suggested
    suggested: int  # the number of classes by the costs of merges
    actions: int  # of a person; 0: nobody has looked
    without_name: int  # images
    by_names: bool  # False: features hardly predict names, and k-means began the classes
    classes: list[DiscoveredClass]


def discover_classes(
    proposed_path: str,
    output: str,
    proposal_output: str,
    discovered_output: str,
    actions_path: str | None = None,
) -> None:
    """Write class names, one per line, the proposal as JSON, and the class of each image.

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
    record = DiscoveryRecord(
        proposal=about.digest,
        wanted=about.wanted,
        suggested=about.suggested,
        actions=len(actions),
        without_name=about.without_name,
        by_names=about.by_names,
        classes=_classes(proposal, classes),
    )
    write_record(proposal_output, record)
    labels = classes.labels(proposal)
    columns = {
        "image_id": proposal.image_ids,
        "classname": [classes.names.get(label) for label in labels.tolist()],
        "confidence": proposal.confidence,
    }
    tables.write(discovered_output, columns, DISCOVERED)
    # The last, for without the proposal it would count as written by hand.
    write_text(output, "\n".join(names) + "\n")
    page = shlex.join(["latteclip", "classes", str(Path(output).parent)])
    changed = f"A person made {counted(len(actions), 'change')}."
    log.log(
        logging.INFO if actions else logging.WARNING,
        "%d classes of %d images (%d suggested): %s.%s %s",
        len(names),
        len(labels),
        about.suggested,
        one_line(", ".join(names)),
        ""
        if about.by_names
        else " Names do not fit the image features, so k-means was used.",
        changed
        if actions
        else f"Nobody has checked them. To check and change them: {page}",
    )


def _classes(proposal: Proposal, classes: Classes) -> list[DiscoveredClass]:
    """Return each class with its number of images, and the names that were proposed for it."""
    labels = classes.labels(proposal)
    about = proposal.about
    return [
        DiscoveredClass(
            name=name,
            images=int(np.count_nonzero(labels == k)),
            proposed=[*map(ClassName, about.names[k], about.shares[k])],
        )
        for k, name in classes.names.items()
    ]
