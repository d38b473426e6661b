"""Groups of images by looks alone, where names say little about them.

Letters: N images, K groups, D embedding width.
"""

import numpy as np
import scipy.sparse

from latteclip.discover import grouping
from latteclip.discover.grouping import Evidence, Groups, Merge
from latteclip.discover.names import Floats, Ints, cosines_of, normalised

# How well looks predict the names of images, at least, for names to form groups.
MIN_INFORMATION = 0.3
CLEARLY = 0.99  # of the scatter by names, below which looks are clearly better
WARD = 1.0  # exponent of the numbers of images: large groups are not joined for a small distance
MAX_GROUPS = 4_000  # that are merged one by one


def better_by_looks(
    evidence: Evidence, groups: Groups, steps: list[Merge], n_classes: int
) -> Groups | None:
    """Return as many classes by looks, if names say little and these fit looks and names better.

    They are compared with the classes that are cut from groups by names and looks, after their
    merges. Where names say nothing at all, there are no classes.
    """
    if not 0 < evidence.information < MIN_INFORMATION:
        return None
    by_names = grouping.cut(steps, groups.n_groups, n_classes)[groups.labels]
    by_looks = group_by_looks(evidence, n_classes)
    limit = CLEARLY * grouping.scatter(evidence, by_names)
    return by_looks if grouping.scatter(evidence, by_looks.labels) < limit else None


def group_by_looks(evidence: Evidence, n_groups: int) -> Groups:
    """Group images into a number of groups.

    Images linked by nearest neighbours are merged by Ward's rule. Then they go to the group whose
    looks, and names for what they are worth, fit them best.
    """
    plain = evidence.without_names()
    first = grouping.group(plain, start=linked(evidence.looks))
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
    n = len(labels)
    while labels.max() >= MAX_GROUPS:
        table = scipy.sparse.csr_matrix((np.ones(n), (labels, np.arange(n))))
        sizes = np.bincount(labels)
        means = np.asarray(table @ looks / sizes[:, None], np.float32)
        labels = neighbours(means)[labels]
    return labels


def neighbours(looks: Floats) -> Ints:
    """Return groups [N] of images that are linked by their nearest images, by features [N, D]."""
    unit = normalised(looks)
    n = len(unit)
    every = np.arange(n)
    nearest = np.empty(n, np.int64)
    for start in range(0, n, grouping.ROWS):
        part = every[start : start + grouping.ROWS]
        nearest[part] = cosines_of(unit, part).argmax(axis=1)
    links = scipy.sparse.csr_matrix((np.ones(n), (every, nearest)), (n, n))
    _, labels = scipy.sparse.csgraph.connected_components(links, directed=False)
    return labels.astype(np.int64)  # type: ignore[no-any-return]
