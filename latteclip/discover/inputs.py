"""A proposal of classes in the tables that its stage writes, and a person's actions on it.

Letters: N images, L leaves, k leaves of an image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from latteclip.core import tables
from latteclip.core.class_history import read_history
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.hashing import digest
from latteclip.discover.grouping import Merge, Sums
from latteclip.discover.names import Floats, Ints
from latteclip.discover.proposal import Action, Proposal, parse_actions
from latteclip.discover.records import LEAF_MEMBERS, LEAVES, ProposalMetadata

LEAVES_FILE = "leaves.parquet"
MEMBERS_FILE = "leaf_members.parquet"


@dataclass(frozen=True)
class Discovery:
    """Images, and the classes that are proposed for them."""

    image_ids: list[str]
    proposal: Proposal
    terms: list[dict[str, int]]  # [L] the most frequent ones, with their numbers of images
    nearest: Ints  # [N, k] the likeliest leaves
    probabilities: Floats  # [N, k]
    without_name: int  # images
    wanted: int | None  # the number of classes that was asked for

    @property
    def digest(self) -> str:
        """Return a digest by which actions know the proposal."""
        leaves = self.proposal.leaves.astype(np.int64).tobytes()
        names = "\n".join(self.proposal.first_names)
        classes = str(self.proposal.classes)
        images = "\n".join(self.image_ids)
        return digest(leaves, names.encode(), classes.encode(), images.encode())[:32]


def write_proposal(discovery: Discovery, leaves_path: str, members_path: str) -> None:
    """Write LEAVES and LEAF_MEMBERS."""
    proposal = discovery.proposal
    sums = proposal.sums
    names = sums.names
    metadata = ProposalMetadata(
        proposal=discovery.digest,
        wanted=discovery.wanted,
        suggested=proposal.suggested,
        terms=names.shape[1],
        without_name=discovery.without_name,
        unit=proposal.unit,
        by_looks=proposal.by_looks,
        into=[step.into for step in proposal.steps],
        taken=[step.taken for step in proposal.steps],
        costs=[step.cost for step in proposal.steps],
        classes=proposal.classes,
        names=proposal.names,
        shares=proposal.shares,
    )
    columns = {
        "images": sums.sizes.astype(np.int64),
        "looks": tables.list_column(sums.looks.astype(np.float32)),
        "name_terms": pa.ListArray.from_arrays(names.indptr, names.indices),
        "name_weights": pa.ListArray.from_arrays(
            names.indptr, names.data.astype(np.float32)
        ),
        "reliability": sums.reliabilities,
        "terms": [[*terms] for terms in discovery.terms],
        "counts": [[*terms.values()] for terms in discovery.terms],
    }
    tables.write(leaves_path, columns, LEAVES, metadata)
    members = {
        "image_id": discovery.image_ids,
        "leaf": proposal.leaves.astype(np.int32),
        "leaves": tables.list_column(discovery.nearest.astype(np.int32)),
        "probabilities": tables.list_column(discovery.probabilities.astype(np.float32)),
    }
    tables.write(members_path, members, LEAF_MEMBERS)


def read_proposal(leaves_path: str | Path, members_path: str | Path) -> Discovery:
    """Read what `write_proposal` wrote."""
    about = tables.read_metadata(leaves_path, ProposalMetadata)
    leaves = tables.read(leaves_path, LEAVES)
    members = tables.read(members_path, LEAF_MEMBERS)
    steps = zip(about.into, about.taken, about.costs, strict=True)
    proposal = Proposal(
        leaves=members["leaf"].to_numpy().astype(np.int64),
        steps=[Merge(*step) for step in steps],
        classes=about.classes,
        names=about.names,
        shares=about.shares,
        suggested=about.suggested,
        sums=_sums(leaves, about.terms),
        unit=about.unit,
        by_looks=about.by_looks,
    )
    pairs = zip(leaves["terms"].to_pylist(), leaves["counts"].to_pylist(), strict=True)
    return Discovery(
        image_ids=members["image_id"].to_pylist(),
        proposal=proposal,
        terms=[dict(zip(terms, counts, strict=True)) for terms, counts in pairs],
        nearest=tables.from_list_column(members["leaves"]).astype(np.int64),
        probabilities=tables.from_list_column(members["probabilities"]),
        without_name=about.without_name,
        wanted=about.wanted,
    )


def _sums(leaves: pa.Table, n_terms: int) -> Sums:
    lengths = pc.list_value_length(leaves["name_terms"]).to_numpy()
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    weights = pc.list_flatten(leaves["name_weights"]).to_numpy()
    terms = pc.list_flatten(leaves["name_terms"]).to_numpy()
    names = scipy.sparse.csr_matrix((weights, terms, indptr), (len(leaves), n_terms))
    return Sums(
        looks=tables.from_list_column(leaves["looks"]),
        names=names,
        sizes=leaves["images"].to_numpy().astype(np.float64),
        reliabilities=leaves["reliability"].to_numpy(),
    )


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
