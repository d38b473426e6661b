"""Propose the classes of images that have no class names, by what they are called and look like."""

import numpy as np
import pyarrow as pa

from latteclip.config.sections.base import AUTO
from latteclip.config.sections.discover import DiscoverSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.discover.grouping import MIN_IMAGES, Evidence, nearest_groups
from latteclip.discover.inputs import Discovery, write_proposal
from latteclip.discover.names import Floats, read_names
from latteclip.discover.proposal import leaf_terms, propose
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import whiten


def propose_classes(
    images_path: str,
    names_path: str,
    looks_path: str,
    settings: DiscoverSection,
    output: str,
    members_output: str,
) -> None:
    """Write LEAVES, which are small groups of images, and LEAF_MEMBERS, with how they merge.

    UserError: the answers of the captioner name fewer than two classes.
    """
    index, _ = tables.read_unlabelled(images_path, training=True)
    ids = index["image_id"]
    answers = tables.lookup_column(names_path, tables.CAPTIONS, "id", "caption", ids)
    looks = whiten(read_features(looks_path, ids, tables.IMAGE_FEATURES))
    evidence = _evidence(answers, looks.centred[:].numpy(), names_path)
    wanted = None if settings.classes == AUTO else settings.classes
    discovery = discover(ids.to_pylist(), evidence, wanted)
    if len(discovery.proposal.classes) < 2:
        raise UserError(
            f"The {len(ids)} images have fewer than two classes by their names ({names_path}): at "
            f"least {MIN_IMAGES} images must share a name that the others lack. Write the names of "
            "the classes into classes.txt in the folder of the images, or change discover.prompt."
        )
    write_proposal(discovery, output, members_output)


def discover(image_ids: list[str], evidence: Evidence, wanted: int | None) -> Discovery:
    """Propose classes: a number, or None for as many as the curve of merges suggests."""
    proposal = propose(evidence, wanted)
    return Discovery(
        image_ids,
        proposal,
        leaf_terms(proposal, evidence.terms),
        *nearest_groups(evidence, proposal.leaves),
        int((evidence.best < 0).sum()),
        wanted,
    )


def _evidence(answers: pa.ChunkedArray, looks: Floats, names_path: str) -> Evidence:
    texts = [text or "" for text in answers.to_pylist()]
    if not any(text.strip() for text in texts):
        raise UserError(
            f"{names_path} has no answer about any image; see its column error, or set "
            "captioner.engine to an engine that can name what an image shows."
        )
    return Evidence.of(np.ascontiguousarray(looks, np.float32), read_names(texts))
