"""Names of classes by the terms of their images.

A class is named by the term that stands for it best: most of its images have it, and few others do.
Letters: N images, K classes, T terms.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from latteclip.discover.names import Ints, Names

RUNNERS_UP = 4
BETA = 0.5  # weight of recall
RARITY = 0.5  # exponent of inverse document frequency
PART_OF_NAMES = 0.5  # factor of a term that is never a whole name, as "harley"
UNNAMED = "unnamed group"  # begin of the name of a class whose images share no name


def name_classes(labels: Ints, names: Names, n_classes: int) -> list[list[str]]:
    """Return the names of classes by the labels [N] of the images, the best name first.

    Each class has at least one, and no two have the same first name.
    """
    table = term_counts(labels, names, n_classes)
    sizes = np.bincount(labels, minlength=n_classes).tolist()
    ranked = [_ranked(table[k], sizes[k], names) for k in range(n_classes)]
    found = []
    for k, first in enumerate(_distinct(ranked)):
        terms = [term for _, term in ranked[k] if term != first][:RUNNERS_UP]
        best = names.terms[first] if first >= 0 else f"{UNNAMED} {k + 1}"
        found.append([best, *(names.terms[term] for term in terms)])
    return found


def term_counts(labels: Ints, names: Names, n_classes: int) -> scipy.sparse.csr_matrix:
    """Return how many images [K, T] of each class have each term."""
    has = names.counts.astype(bool).astype(np.int64)
    cells = np.ones(len(labels), np.int64), (labels, np.arange(len(labels)))
    return (scipy.sparse.csr_matrix(cells, (n_classes, len(labels))) @ has).tocsr()


def _ranked(
    row: scipy.sparse.csr_matrix, size: int, names: Names
) -> list[tuple[float, int]]:
    """Return terms of a class, the best first.

    The score is F_0.5 of the term as a test for the class, times the root of its inverse document
    frequency. So "stegosaurus" comes before "dinosaur".
    """
    images = names.images
    n_images = names.counts.shape[0]
    scored = []
    for term, n in zip(row.indices.tolist(), row.data, strict=True):
        precise = (1 + BETA**2) * n / (images[term] + BETA**2 * size)
        rarity = np.log(n_images / images[term]) ** RARITY
        score = float(precise * rarity)
        if not names.whole[term]:
            score *= PART_OF_NAMES
        n_words = len(names.terms[term].split())
        scored.append((-score, -n_words, term))
    return [(-score, term) for score, _, term in sorted(scored)]


def _distinct(ranked: Sequence[list[tuple[float, int]]]) -> list[int]:
    """Return a term for each class, none twice, and -1 where none is left.

    The class that fits a term best has it.
    """
    pairs = []
    for k, scored in enumerate(ranked):
        pairs += [(-score, k, term) for score, term in scored]
    taken: dict[int, int] = {}
    used: set[int] = set()
    for _, k, term in sorted(pairs):
        if k not in taken and term not in used:
            taken[k] = term
            used.add(term)
    return [taken.get(k, -1) for k in range(len(ranked))]
