"""The stages that propose classes of images without class names, and write them after a person."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latteclip.config.keys import AUTO, DiscoverSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record, write_text
from latteclip.core.terminal import counted, one_line
from latteclip.discover.grouping import MIN_IMAGES, Evidence
from latteclip.discover.names import read_names
from latteclip.discover.proposal import (
    LEFT_OUT,
    propose,
    read_actions,
    read_proposal,
    replay,
    write_proposal,
)
from latteclip.labels.features import read_features
from latteclip.labels.image_classes import Whitener

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


def propose_classes(
    images_path: str,
    names_path: str,
    features_path: str,
    settings: DiscoverSection,
    output: str,
) -> None:
    """Write PROPOSED: the class of each image, and the names of each class.

    UserError: the answers of the captioner name fewer than two classes.
    """
    index, _ = tables.read_unlabelled(images_path, training=True)
    ids = index["image_id"]
    column = tables.lookup_column(names_path, tables.CAPTIONS, "id", "caption", ids)
    answers = [text or "" for text in column.to_pylist()]
    if not any(text.strip() for text in answers):
        raise UserError(
            f"{names_path} has no answer about any image; see its column error, or set "
            "captioner.engine to an engine that can name what an image shows."
        )
    features = read_features(features_path, ids, tables.IMAGE_FEATURES)[:].numpy()
    evidence = Evidence.of(Whitener(features)(features), read_names(answers))
    wanted = None if settings.classes == AUTO else settings.classes
    proposal = propose(ids.to_pylist(), evidence, wanted)
    if len(proposal.about.names) < 2:
        raise UserError(
            f"The {len(ids)} images have fewer than two classes by their names ({names_path}): at "
            f"least {MIN_IMAGES} images must share a name that the others lack. Write the names of "
            "the classes into classes.txt in the folder of the images, or change discover.prompt."
        )
    write_proposal(proposal, output)


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
