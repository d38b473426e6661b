"""The stage that proposes classes of images without class names.

Letters: N images, C proposed classes, T terms.
"""

import numpy as np

from latteclip.clip.features import read_features
from latteclip.config.keys import AUTO, DiscoverSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import digest
from latteclip.core.terminal import counted
from latteclip.discover import grouping
from latteclip.discover.grouping import MIN_IMAGES, NamedFeatures
from latteclip.discover.names import Ints, Names, read_names
from latteclip.discover.proposal import PROPOSED, Proposal, ProposalMetadata
from latteclip.labels.image_classes import Whitener

RUNNERS_UP = 4  # further names of a class
BETA = 0.5  # weight of recall
RARITY = 0.5  # exponent of inverse document frequency


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
    column = tables.lookup_column(names_path, "caption", ids)
    answers = [text or "" for text in column.to_pylist()]
    features = read_features(features_path, ids).read()
    evidence = NamedFeatures.of(Whitener(features)(features), read_names(answers))
    wanted = None if settings.classes == AUTO else settings.classes
    proposal = propose(ids.to_pylist(), evidence, wanted)
    if len(proposal.about.names) < 2:
        raise UserError(
            f"The names of {counted(len(ids), 'image')} ({names_path}) give fewer than two "
            f"classes: at least {MIN_IMAGES} images must share a name that the others lack. Write "
            "class names into classes.txt in the folder of the images, or change discover.prompt."
        )
    columns = {
        "image_id": proposal.image_ids,
        "class": proposal.labels,
    }
    tables.write(output, columns, PROPOSED, proposal.about)


def propose(
    image_ids: list[str], evidence: NamedFeatures, wanted: int | None = None
) -> Proposal:
    """Propose a number of classes, or None for a guess."""
    labels = grouping.classes(evidence, wanted)
    names = name_classes(labels, evidence.terms)
    content = digest(labels.tobytes(), *image_ids, str(names))[:32]
    return Proposal(image_ids, labels, ProposalMetadata(content, names))


def name_classes(labels: Ints, names: Names) -> list[list[str]]:
    """Return the names of classes by the labels [N] of the images, the best name first.

    A term's score is its F_0.5 as a test for the class, times the root of its inverse document
    frequency. So "stegosaurus" comes before "dinosaur". Each class has a name, no two have the same
    first one, and the class that fits a term best has it.
    """
    belongs = grouping.members(labels)
    table = (belongs.T @ names.has).tocoo()
    k, t, both = table.row, table.col, table.data
    images = names.images
    sizes = np.bincount(labels)
    precise = (1 + BETA**2) * both / (images[t] + BETA**2 * sizes[k])
    rarity = np.log(len(labels) / images[t]) ** RARITY
    score = precise * rarity
    n_words = np.array([term.count(" ") for term in names.terms], np.int64)[t]
    order = np.lexsort((t, -n_words, -score))
    ranked: list[list[str]] = [[] for _ in sizes]
    first: dict[int, str] = {}
    for number, term in zip(k[order].tolist(), t[order].tolist(), strict=True):
        name = names.terms[term]
        ranked[number].append(name)
        if number not in first and name not in first.values():
            first[number] = name
    found = []
    for number, others in enumerate(ranked):
        best = first.get(number, f"unnamed group {number + 1}")
        found.append([*dict.fromkeys([best, *others])][: 1 + RUNNERS_UP])
    return found
