"""What a proposal of classes is made of, read from the tables of the stages before it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.class_history import read_history
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.hashing import digest
from latteclip.discover.grouping import MIN_IMAGES, Evidence, Floats
from latteclip.discover.names import read_names
from latteclip.discover.proposal import Action, Proposal, parse_actions, propose
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import whiten


@dataclass(frozen=True)
class Discovery:
    """Images, what is known of them, and the classes that are proposed."""

    image_ids: list[str]
    evidence: Evidence
    proposal: Proposal

    @cached_property
    def digest(self) -> str:
        """Return a digest by which actions know the proposal."""
        leaves = self.proposal.leaves.astype(np.int64).tobytes()
        names = "\n".join(found[0] for found in self.proposal.names)
        classes = str(self.proposal.classes)
        images = "\n".join(self.image_ids)
        return digest(leaves, names.encode(), classes.encode(), images.encode())[:32]


def discover(
    images_path: str, names_path: str, looks_path: str, n_classes: int | None
) -> Discovery:
    """Propose classes: a number, or None for as many as the curve of merges suggests.

    UserError: the answers of the captioner name no classes.
    """
    index, _ = tables.read_unlabelled(images_path, training=True)
    ids = index["image_id"]
    answers = tables.lookup_column(names_path, tables.CAPTIONS, "id", "caption", ids)
    looks = whiten(read_features(looks_path, ids, tables.IMAGE_FEATURES))
    evidence = _evidence(answers, looks.centred[:].numpy(), names_path)
    proposal = propose(evidence, n_classes)
    if len(proposal.classes) < 2:
        raise UserError(
            f"The {len(ids)} images have fewer than two classes by their names ({names_path}): at "
            f"least {MIN_IMAGES} images must share a name that the others lack. Write the names of "
            "the classes into classes.txt in the folder of the images, or change discover.prompt."
        )
    return Discovery(ids.to_pylist(), evidence, proposal)


def _evidence(answers: pa.ChunkedArray, looks: Floats, names_path: str) -> Evidence:
    texts = [text or "" for text in answers.to_pylist()]
    if not any(text.strip() for text in texts):
        raise UserError(
            f"{names_path} has no answer about any image; see its column error, or set "
            "captioner.engine to an engine that can name what an image shows."
        )
    return Evidence.of(np.ascontiguousarray(looks, np.float32), read_names(texts))


def read_actions(path: str | Path, discovery: Discovery) -> list[Action]:
    """Read a person's actions. UserError: they belong to another proposal, or are no actions."""
    if not Path(path).is_file():
        return []
    content = Path(path).read_bytes()
    actions = parse_actions(content, str(path))
    if actions and f'"{discovery.digest}"'.encode() not in content:
        raise UserError(
            f"{path} belongs to other images or names, for the proposal of classes has changed. "
            "To keep the classes as they are, copy classes.txt beside it into the folder of the "
            f"images and leave split.classes out; to begin anew, delete {path}."
        )
    return actions


def write_actions(path: str | Path, discovery: Discovery, actions: list[Action]) -> None:
    """Write a person's actions, from which the classes follow."""
    values = [action.model_dump(exclude_none=True) for action in actions]
    history = read_history(Path(path).parent)
    write_json(path, {**history, "proposal": discovery.digest, "actions": values})
