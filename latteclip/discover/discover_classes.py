"""The stage that writes proposed classes after a person. Letters as in `proposal`."""

import logging
from pathlib import Path

import numpy as np

from latteclip.core.errors import UserError
from latteclip.core.files import write_json, write_text
from latteclip.discover.proposal import (
    LEFT_OUT,
    of_number,
    read_actions,
    read_proposal,
    replay,
)

log = logging.getLogger(__name__)


def discover_classes(
    proposed_path: str,
    output: str,
    proposal_output: str,
    actions_path: str | None = None,
) -> None:
    """Write class names, one per line, and as JSON with the actions and images that are left out.

    UserError: a person's actions leave fewer than two classes.
    """
    proposal = read_proposal(proposed_path)
    actions = read_actions(actions_path, proposal.about) if actions_path else []
    classes, owner = replay(proposal.about, actions)
    if len(classes) < 2:
        raise UserError(
            f"{actions_path} leaves fewer than two classes; undo some of its actions."
        )
    names = [*classes.values()]
    ids = np.array(proposal.image_ids)[owner[proposal.labels] == LEFT_OUT].tolist()
    discovery = {"actions": len(actions), "classes": names, "left_out": ids}
    write_json(proposal_output, discovery)
    # The last, for without the proposal it would count as written by hand.
    write_text(output, "\n".join(names) + "\n")
    if not actions:
        again = of_number(Path(output).parent, len(names))
        log.warning(
            "To propose another number of classes, change it in: %s", again
        )
