"""Groups of images by looks alone, where names say little about them.

Letters: N images, K groups, D embedding width.
"""

import numpy as np
import scipy.sparse

from latteclip.discover import grouping
from latteclip.discover.grouping import Evidence, Floats, Groups, Ints

TELLING = (
    0.3  # how well looks predict the names of images, at least, for names to form groups
)
WARD = 1.0  # exponent of the numbers of images: large groups are not joined for a small distance
MAX_GROUPS = 4_000  # that are merged one by one


def group_by_looks(evidence: Evidence, n_groups: int | None = None) -> Groups:
    """Group images into a number, or as many groups as the curve of merges suggests.

    Images linked by nearest neighbours are merged by Ward's rule. Then they go to the group whose
    looks, and names for what they are worth, fit them best.
    """
    plain = evidence.without_names()
    first = grouping.group(plain, start=linked(evidence.looks))
    if n_groups is None:
        steps = grouping.merges(plain, first.labels)
        n_groups = grouping.suggested_number(steps, first.n_groups)
    steps = grouping.merges(plain, first.labels, WARD)
    merged = grouping.cut(steps, first.n_groups, n_groups)[first.labels]
    moved = grouping.group(evidence, start=merged)
    if moved.n_groups == n_groups:
        return moved
    # A small group has lost its images, and the number is kept.
    certain = np.ones(len(merged), np.float32)
    return Groups(merged, certain, merged, int(merged.max()) + 1)


def linked(looks: Floats) -> Ints:
    """Return groups [N] of images that are linked by nearest neighbours, with features [N, D].

    The means of too many groups are linked again. These are the groups of FINCH (Sarfraz, Sharma
    and Stiefelhagen 2019).
    """
    labels = neighbours(looks)
    while (n_groups := int(labels.max()) + 1) > MAX_GROUPS:
        cells = np.ones(len(labels)), (labels, np.arange(len(labels)))
        table = scipy.sparse.csr_matrix(cells)
        sizes = np.bincount(labels, minlength=n_groups)[:, None]
        means = np.asarray(table @ looks / sizes, np.float32)
        labels = neighbours(means)[labels]
    return labels


def neighbours(looks: Floats) -> Ints:
    """Return groups [N] of images that are linked by their nearest images, by features [N, D]."""
    unit = looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), grouping.TINY)
    n = len(unit)
    nearest = np.empty(n, np.int64)
    for start in range(0, n, grouping.ROWS):
        part = np.arange(start, min(n, start + grouping.ROWS))
        cosines = unit[part] @ unit.T
        cosines[np.arange(len(part)), part] = -np.inf
        nearest[part] = cosines.argmax(axis=1)
    links = scipy.sparse.csr_matrix((np.ones(n), (np.arange(n), nearest)), (n, n))
    _, labels = scipy.sparse.csgraph.connected_components(links, directed=False)
    return labels.astype(np.int64)  # type: ignore[no-any-return]
