"""Find sets of images that show the same picture: scaled, recompressed, or slightly cropped.

Two images are a pair if a view of one, the whole picture or a crop of it, has nearly the perceptual
hashes of the whole other one. A set is all images that pairs connect.

Letters: N images, V views, P pairs.
"""

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.data.view_hashes import VIEWS

log = logging.getLogger(__name__)
# Bits of 64 in which the hashes of a pair differ, at most.
MAX_PHASH = (
    7  # below 2 BANDS, so that one band of the two differs in one bit at most
)
MAX_DHASH = 10
AT_ONCE = 2**22  # pairs that are compared
BANDS = 4  # parts of a pHash, of 16 bits each
# Changes of a band that are looked up.
FLIPS = [0, *(1 << bit for bit in range(16))]
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def find_duplicates(images_path: str, output: str) -> None:
    """Write DUPLICATES of all images of an index, whatever their split. Nothing is removed."""
    index, _ = tables.read_unlabelled(images_path, training=False)
    content = b"".join(index["hashes"].to_pylist())
    hashes = np.frombuffer(content, np.uint64).reshape(len(index), 2, len(VIEWS))
    sets = duplicate_sets(hashes)
    rows = np.flatnonzero(sets >= 0)
    ids = index["image_id"].take(pa.array(rows))
    tables.write(output, {"image_id": ids, "set": sets[rows]}, tables.DUPLICATES)
    log.info(
        "%d of %d images are in %d sets of near-duplicates.",
        len(rows),
        len(sets),
        sets.max(initial=-1) + 1,
    )


def duplicate_sets(hashes: Hashes) -> npt.NDArray[np.int32]:
    """Return the number of each image's set [N] by both hashes of its views [N, 2, V], or -1.

    Sets are numbered in the order of their first images. Pictures of one colour are in none.
    """
    # Here: the processes that index need `view_hashes` alone, and start in half the time.
    import pandas as pd
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sets = np.full(len(hashes), -1, np.int32)
    detailed = np.flatnonzero(hashes[:, 0, 0])
    # Of images with equal hashes one is compared.
    distinct, copy_of = np.unique(hashes[detailed], axis=0, return_inverse=True)
    n = len(distinct)
    component = np.arange(n)
    for pairs in _pairs(distinct[:, 0], distinct[:, 1]):
        edges = coo_array(
            (np.ones(pairs.shape[1]), component[pairs]), shape=(n, n)
        )
        _, joined = connected_components(edges, directed=False)
        component = joined[component]
    of_image = component[copy_of.reshape(-1)]
    in_set = np.bincount(of_image)[of_image] > 1
    sets[detailed[in_set]] = pd.factorize(of_image[in_set])[0]
    return sets


def _pairs(phashes: Hashes, dhashes: Hashes) -> Iterator[Rows]:
    """Yield pairs of images [2, P], a view of the first and the whole second; some repeatedly.

    Hashes that differ in fewer than 2 BANDS bits have a band that differs in one bit at most. So
    only images of such a band are compared.
    """
    n, n_views = phashes.shape
    bands = phashes.view(np.uint16).reshape(n, n_views, BANDS)
    for band in range(BANDS):
        whole = bands[:, 0, band]
        by_value = np.argsort(whole, kind="stable")
        counts = np.bincount(whole, minlength=2**16)
        starts = np.cumsum(counts) - counts
        for view, flip in itertools.product(range(n_views), FLIPS):
            wanted = bands[:, view, band] ^ flip
            for rows, places in _ranges(starts[wanted], counts[wanted]):
                pairs = np.stack([rows, by_value[places]])
                for hashes, most in ((phashes, MAX_PHASH), (dhashes, MAX_DHASH)):
                    rows, others = pairs
                    bits = np.bitwise_count(hashes[rows, view] ^ hashes[others, 0])
                    pairs = pairs[:, (bits <= most) & (rows != others)]
                if pairs.size:
                    yield pairs


def _ranges(starts: Rows, lengths: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield the numbers in ranges, each beside the number of its range, AT_ONCE or so."""
    all_ranges = np.arange(len(starts))
    for part in np.array_split(all_ranges, 1 + lengths.sum() // AT_ONCE):
        of_range = np.repeat(part, lengths[part])
        # The first number of each range, less the place that it has here.
        offsets = starts[part] - (np.cumsum(lengths[part]) - lengths[part])
        yield (
            of_range,
            np.repeat(offsets, lengths[part]) + np.arange(len(of_range)),
        )
