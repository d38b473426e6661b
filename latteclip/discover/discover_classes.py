"""The stages that propose classes of images without class names, and write them after a person."""

import logging
import shlex
from pathlib import Path

from latteclip.config.keys import AUTO, DiscoverSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_json, write_text
from latteclip.core.terminal import one_line
from latteclip.discover.grouping import MIN_IMAGES, Evidence
from latteclip.discover.names import read_names
from latteclip.discover.proposal import (
    propose,
    read_actions,
    read_proposal,
    replay,
    write_proposal,
)
from latteclip.labels.features import read_features
from latteclip.labels.image_classes import Whitener

log = logging.getLogger(__name__)


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
    """Write class names, one per line, and as JSON with the number of a person's actions.

    UserError: a person's actions leave fewer than two classes.
    """
    proposal = read_proposal(proposed_path)
    actions = read_actions(actions_path, proposal.about) if actions_path else []
    classes, _ = replay(proposal.about, actions)
    if len(classes) < 2:
        raise UserError(
            f"{actions_path} leaves fewer than two classes; undo some of its actions."
        )
    names = [*classes.values()]
    write_json(proposal_output, {"actions": len(actions), "classes": names})
    # The last, for without the proposal it would count as written by hand.
    write_text(output, "\n".join(names) + "\n")
    log.info("%d classes: %s.", len(names), one_line(", ".join(names)))
    if not actions:
        page = shlex.join(["latteclip", "classes", str(Path(output).parent)])
        log.warning("Nobody has checked the classes. To check and change them: %s", page)
