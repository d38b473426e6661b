"""Find sets of images that show the same picture: scaled, recompressed, or slightly cropped.

Two images are a pair if a view of one, the whole picture or a crop of it, has nearly the perceptual
hashes of the whole other one. A set is all images that pairs connect.

Letters: N images, V views, Q queries, P pairs.
"""

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from latteclip.core import tables

log = logging.getLogger(__name__)
SIDE = 128  # pixels of the picture that is hashed
CROP = 0.95  # share of each side that a cropped view shows
# Views of an image: left, top, right, bottom as shares of the sides. The first is the whole.
VIEWS = [(0.0, 0.0, 1.0, 1.0)]
for _left, _top in [(0.5, 0.5), *itertools.product((0.0, 1.0), repeat=2)]:
    _x, _y = _left * (1 - CROP), _top * (1 - CROP)
    VIEWS.append((_x, _y, _x + CROP, _y + CROP))
BYTES = 16 * len(VIEWS)
CONTRAST = 2.0  # standard deviation in grey levels below which a picture is of one colour
# Bits of 64 in which the hashes of a pair differ, at most.
MAX_PHASH = 7  # below 2 BANDS, so that one band of the two differs in one bit at most
MAX_DHASH = 10
BANDS = 4  # parts of a pHash, of 16 bits each
FLIPS = [0, *(1 << bit for bit in range(16))]  # changes of a band that are looked up
CANDIDATES = 2**22  # pairs that are compared at a time
QUERIES = 2**16
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def view_hashes(picture: Image.Image) -> bytes:
    """Return the pHash and then the dHash of each view of a picture, 8 bytes each.

    A picture of one colour has no details to compare: all its bytes are 0.
    """
    import imagehash  # here: only worker processes need it

    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = small.convert("L")
    if np.std(np.asarray(grey)) < CONTRAST:
        return bytes(BYTES)
    views = []
    for view in VIEWS:
        left, top, right, bottom = (round(SIDE * share) for share in view)
        views.append(grey.crop((left, top, right, bottom)))
    hashes = [hash_of(v) for hash_of in (imagehash.phash, imagehash.dhash) for v in views]
    return b"".join(np.packbits(each.hash).tobytes() for each in hashes)


def find_duplicates(images_path: str, output: str) -> None:
    """Write DUPLICATES of all images of an index, whatever their split. Nothing is removed."""
    index, _ = tables.read_unlabelled(images_path, training=False)
    content = b"".join(index["hashes"].to_pylist())
    hashes = np.frombuffer(content, np.uint64).reshape(len(index), 2, len(VIEWS))
    sets = duplicate_sets(hashes[:, 0], hashes[:, 1])
    rows = np.flatnonzero(sets >= 0)
    columns = {"image_id": index["image_id"].take(pa.array(rows)), "set": sets[rows]}
    tables.write(output, columns, tables.DUPLICATES)
    n_sets = len(np.unique(sets[rows]))
    log.info(
        "%d of %d images are in %d sets of near-duplicates.", len(rows), len(sets), n_sets
    )


def duplicate_sets(phashes: Hashes, dhashes: Hashes) -> npt.NDArray[np.int32]:
    """Return the number of each image's set [N] by the hashes of its views [N, V]; -1: it has none.

    Sets are numbered in the order of their first images. Pictures of one colour are in none.
    """
    detailed = np.flatnonzero(phashes[:, 0])
    both = np.concatenate([phashes, dhashes], axis=1)[detailed]
    _, first, of = np.unique(both, axis=0, return_index=True, return_inverse=True)
    first = detailed[first]
    component = np.arange(len(first))  # of images with equal hashes
    waiting: list[Rows] = []
    for pairs in _pairs(phashes[first], dhashes[first]):
        waiting.append(pairs)
        if sum(map(len, waiting)) > CANDIDATES:
            component = _joined(component, np.concatenate(waiting))
            waiting = []
    waiting.append(np.empty((0, 2), np.int64))
    component = _joined(component, np.concatenate(waiting))[of.reshape(-1)]
    in_set = np.flatnonzero(np.bincount(component)[component] > 1)
    _, first, number = np.unique(component[in_set], return_index=True, return_inverse=True)
    sets = np.full(len(phashes), -1, np.int32)
    sets[detailed[in_set]] = np.argsort(np.argsort(first))[number]
    return sets


def _joined(component: Rows, pairs: Rows) -> Rows:
    """Return the component of each image after pairs [P, 2] join some."""
    n = len(component)
    ends = component[pairs].T
    edges = coo_array((np.ones(len(pairs), bool), ends), shape=(n, n))
    joined = connected_components(edges, directed=False)[1]
    return np.asarray(joined[component])


def _pairs(phashes: Hashes, dhashes: Hashes) -> Iterator[Rows]:
    """Yield pairs of images [P, 2], a view of the first and the whole second; some repeatedly."""
    whole = np.ascontiguousarray(phashes[:, 0])
    bands = whole.view(np.uint16).reshape(-1, BANDS)
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        counts = np.bincount(bands[:, band], minlength=2**16)
        ends = np.cumsum(counts)
        queries = phashes.view(np.uint16).reshape(*phashes.shape, BANDS)[..., band]
        for view, flip in itertools.product(range(phashes.shape[1]), FLIPS):
            for start in range(0, len(whole), QUERIES):
                values = queries[start : start + QUERIES, view] ^ flip
                for queried, places in _expanded(
                    ends[values] - counts[values], counts[values]
                ):
                    rows = start + queried
                    others = order[places]
                    bits = np.bitwise_count(phashes[rows, view] ^ whole[others])
                    is_near = (bits <= MAX_PHASH) & (rows != others)
                    rows = rows[is_near]
                    others = others[is_near]
                    bits = np.bitwise_count(dhashes[rows, view] ^ dhashes[others, 0])
                    yield np.stack([rows, others], axis=1)[bits <= MAX_DHASH]


def _expanded(starts: Rows, lengths: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield the positions of Q ranges, and which range each is of, CANDIDATES or so at a time."""
    ends = np.cumsum(lengths)
    parts = np.searchsorted(ends, np.arange(0, ends[-1] + CANDIDATES, CANDIDATES))
    for first, last in itertools.pairwise(np.unique([*parts, len(starts)])):
        of = np.repeat(np.arange(first, last), lengths[first:last])
        before = np.repeat(ends[first:last] - lengths[first:last], lengths[first:last])
        offset = ends[first - 1] if first else 0
        yield of, starts[of] + offset + np.arange(len(of)) - before
