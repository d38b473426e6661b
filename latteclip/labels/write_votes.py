"""Write the votes of a voter that asks no captioner."""

import importlib
import logging

import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.own_votes import VotesSettings

log = logging.getLogger(__name__)


def write_votes(
    images_path: str, settings: VotesSettings, output: str, *, device: str, threads: int
) -> None:
    """Write the votes of a voter for images that are not in the test split, as CLASS_SCORES.

    The function `write` of the module of the voter's kind, in latteclip/labels/voters, writes them.
    An image about which the voter is silent has no options.
    """
    # By name: an edit of a kind reruns the voters of this kind.
    module = importlib.import_module(f"latteclip.labels.voters.{settings.kind}")
    module.write(images_path, settings, output, device=device, threads=threads)
    options = tables.read(output, tables.CLASS_SCORES, ["options"])["options"]
    n = pc.sum(pc.greater(pc.list_value_length(options), 0)).as_py() or 0
    if not n:
        raise UserError(
            f"The voter {settings.name} has no vote about any image; correct it, or remove it from "
            "voters."
        )
    log.info("The voter %s votes for %d of %d images.", settings.name, n, len(options))
