"""Find near-duplicates: the same picture scaled, recompressed, or slightly cropped.

Hashes propose pairs, thumbnails reject most of them, and the aligned pictures decide. A thumbnail
would take two chairs before a white wall for the same, but their details differ in place. Each
image is compared with its nearest images only, so that memory grows with images and not with pairs.

Letters: N images, V views, Q queries, P pairs, S and T the sides of a picture and of a thumbnail.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch.nn import functional as F

from latteclip.core import tables
from latteclip.data.fingerprints import BITS, THUMBNAIL, VIEWS, inside
from latteclip.data.images import open_rgb

log = logging.getLogger(__name__)
NEIGHBOURS = 8  # images of the nearest hashes that are compared with a view of an image
MAX_BITS = 72  # that differ between the hashes of a pair
MIN_SIMILARITY = 0.7  # correlation of two thumbnails whose pictures are compared
# Standard deviation in grey levels below which a thumbnail is all one colour.
CONTRAST = 2.0
ALL_PAIRS = 20_000  # images up to which all are compared; of more, those of PROBES cells
PROBES = 16
SIDE = 64  # pixels
# [S] of the pixels of a side, from -1 to 1
MIDDLES = (2 * torch.arange(SIDE) + 1) / SIDE - 1
STEPS = 12  # steps of the alignment, the first half on blurred pictures
COARSE = 8  # pixels of a side whose mean is subtracted, so that details remain
SCALES = (0.75, 1.1)  # the part of a side that the other image may show
MIN_CORRELATION = 0.85  # smallest correlation of the details of near-duplicates
QUERIES, PAIRS, PICTURES = 2**14, 2**14, 256  # at a time
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def find_duplicates(images_path: str, fingerprints_path: str, output: str) -> None:
    """Write DUPLICATES of all images of an index, whatever their split. Nothing is removed."""
    index, _ = tables.read_unlabelled(images_path, training=False)
    table = tables.read(fingerprints_path, tables.FINGERPRINTS)
    ids = np.array(index["image_id"].to_pylist(), dtype=object)
    hashes = _bytes(table["hashes"], len(VIEWS), BITS // 8)  # [N, V, BITS / 8]
    thumbnails = _bytes(table["thumbnail"], THUMBNAIL, THUMBNAIL)  # [N, T, T]
    paths = index["path"]
    pairs, distances = near_duplicates(
        hashes,
        thumbnails,
        lambda row: small_picture(open_rgb(paths[row].as_py(), min_side=SIDE)),
    )
    first, second = pairs.T
    columns = {"image_id": ids[first], "duplicate_id": ids[second], "distance": distances}
    tables.write(output, columns, tables.DUPLICATES)
    is_test = np.array([split == "test" for split in index["split"].to_pylist()], int)
    in_train, across, in_test = np.bincount(is_test[first] + is_test[second], minlength=3)
    log.info(
        "%d pairs of near-duplicates among %d images: %d within training, %d within the test split,"
        " %d between the two.",
        len(pairs),
        len(ids),
        in_train,
        in_test,
        across,
    )


def _bytes(column: pa.ChunkedArray, *shape: int) -> Bytes:
    """Return a column of binary values of one length as bytes [N, *shape]."""
    whole = column.combine_chunks()
    size = math.prod(shape)
    buffer = np.frombuffer(whole.buffers()[1], np.uint8)
    return buffer[whole.offset * size :][: len(whole) * size].reshape(len(whole), *shape)


def small_picture(image: Image.Image) -> Bytes:
    """Return an RGB image at the size of comparison [SIDE, SIDE, 3]."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0))


def near_duplicates(
    hashes: Bytes, thumbnails: Bytes, picture: Callable[[int], Bytes]
) -> tuple[Ints, Floats]:
    """Return pairs of near-duplicates, each once, and 1 - correlation of their details [P].

    Pairs are rows [P, 2], ascending in each, of hashes [N, V, BITS / 8] and thumbnails [N, T, T].
    `picture` returns the image [SIDE, SIDE, 3] of a row.
    """

    def details(triples: Ints) -> Floats:
        rows, positions = np.unique(triples[:, [0, 2]], return_inverse=True)
        pictures = np.stack([picture(row) for row in rows.tolist()])
        first, second = positions.reshape(-1, 2).T
        views = triples[:, 1].tolist()
        return detail_correlation(pictures[first], pictures[second], views)

    proposed = candidates(hashes)
    alike = _in_parts(lambda triples: similarity(thumbnails, triples), proposed, PAIRS)
    proposed = proposed[alike >= MIN_SIMILARITY]
    alike = alike[alike >= MIN_SIMILARITY]
    pairs = np.sort(proposed[:, [0, 2]], axis=1)
    most_alike_first = np.lexsort((-alike, pairs[:, 1], pairs[:, 0]))
    proposed = proposed[most_alike_first]
    pairs = pairs[most_alike_first]
    pairs, first_rows = np.unique(pairs, axis=0, return_index=True)
    alike = _in_parts(details, proposed[first_rows], PICTURES)
    is_same = alike >= MIN_CORRELATION
    distances = 1 - alike[is_same]
    return pairs[is_same], distances.clip(min=0)


def _in_parts(score: Callable[[Ints], Floats], triples: Ints, size: int) -> Floats:
    """Return the scores of triples [P], so many at a time."""
    parts = [score(triples[start : start + size]) for start in range(0, len(triples), size)]
    return np.concatenate([np.empty(0, np.float32), *parts])


def candidates(hashes: Bytes) -> Ints:
    """Return triples [P, 3]: an image, its view, and the image whose whole has a similar hash."""
    faiss.omp_set_num_threads(1)  # several would wait for each other longer than one works
    index = _search_index(hashes[:, 0])
    n_nearest = min(NEIGHBOURS + 1, len(hashes))
    blocks = [np.empty((0, 3), np.int64)]
    queries = hashes.reshape(-1, BITS // 8)  # [N V, BITS / 8]
    for start in range(0, len(queries), QUERIES):
        part = queries[start : start + QUERIES]
        bits, rows = index.search(part, n_nearest)  # [Q, 9] both
        is_near = (rows >= 0) & (bits <= MAX_BITS)
        query, _ = np.nonzero(is_near)
        image, view = np.divmod(start + query, len(VIEWS))
        other = rows[is_near]
        triples = np.stack([image, view, other], axis=1)
        blocks.append(triples[image != other])
    return np.concatenate(blocks)


def _search_index(whole: Bytes) -> Any:
    """Return a search index of N hashes [N, BITS / 8], in 4 sqrt(N) cells where they are many."""
    whole = np.ascontiguousarray(whole)
    index: Any = faiss.IndexBinaryFlat(BITS)
    if len(whole) > ALL_PAIRS:
        index.add(whole[:: math.ceil(math.sqrt(len(whole)) / 4)])
        index = faiss.IndexBinaryIVF(index, BITS, index.ntotal)
        index.nprobe = PROBES
        index.train(whole)  # nothing is left to learn
    index.add(whole)
    return index


def similarity(thumbnails: Bytes, triples: Ints) -> Floats:
    """Return the correlation of views with whole images [P], 0 where one is of one colour."""
    cosines = np.zeros(len(triples), np.float32)
    for view, (share, down, across) in enumerate(VIEWS):
        rows = np.flatnonzero(triples[:, 1] == view)
        image, _, other = triples[rows].T
        from_rows = _sampled(share, down)
        from_columns = _sampled(share, across)
        seen = from_rows @ thumbnails[image] @ from_columns.T  # [P, T, T]
        whole = thumbnails[other].astype(np.float32)
        cosines[rows] = _correlation(seen, whole)
    return cosines


def _sampled(share: float, place: float) -> Floats:
    """Return the map [T, T] from a side of a thumbnail to the side of a crop of it."""
    pixel = share / THUMBNAIL  # size of the crop's pixel, as a share of the side
    starts = (1 - share) * place + pixel * np.arange(THUMBNAIL)
    return np.stack([inside(start, pixel, THUMBNAIL) / share for start in starts])


def _correlation(first: Floats, second: Floats) -> Floats:
    """Return the correlation of pictures [P, T, T] with others [P]."""
    first, second = (part - part.mean((1, 2), keepdims=True) for part in (first, second))
    deviations = [np.sqrt((part**2).mean((1, 2))) for part in (first, second)]
    plain = np.minimum(*deviations) < CONTRAST
    product = (first * second).mean((1, 2))
    return np.where(plain, 0, product / np.maximum(deviations[0] * deviations[1], 1e-6))


def detail_correlation(ones: Bytes, others: Bytes, views: Sequence[int]) -> Floats:
    """Return the correlation of the details of RGB pictures [P, S, S, 3] after alignment [P].

    The alignment starts from `views` [P]: which of VIEWS of the one the other shows.
    """
    first, second = (
        torch.tensor(part).float().permute(0, 3, 1, 2) for part in (ones, others)
    )
    aligned = _warped(first, _aligned(first.mean(1, True), second.mean(1, True), views))
    inside = (..., slice(COARSE, -COARSE), slice(COARSE, -COARSE))
    return _correlation_of_details(
        _details(aligned)[inside], _details(second)[inside]
    ).numpy()


def _aligned(
    first: torch.Tensor, second: torch.Tensor, views: Sequence[int]
) -> torch.Tensor:
    """Return scale and shift across, then down, of the best match of grey pictures [P, 4].

    Gauss-Newton steps on the squared difference, with a gain and an offset of brightness beside
    scale and shift (Lucas and Kanade 1981; Baker and Matthews 2004).
    """
    starts = []
    for view in views:
        share, down, across = VIEWS[view]
        room = 1 - share
        starts.append((share, (2 * across - 1) * room, share, (2 * down - 1) * room))
    fits = torch.tensor(starts)
    best_correlation = _correlation_of_details(_warped(first, fits), second)
    best = fits
    blurred_first = _blur(first)
    blurred_second = _blur(second)
    for step in range(STEPS):
        if step < STEPS // 2:
            fits = _next_places(blurred_first, blurred_second, fits)
        else:
            fits = _next_places(first, second, fits)
        correlation = _correlation_of_details(_warped(first, fits), second)
        is_better = correlation > best_correlation
        best = torch.where(is_better[:, None], fits, best)
        best_correlation = torch.maximum(correlation, best_correlation)
    return best


def _next_places(
    source: torch.Tensor, target: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Return scales and shifts [P, 4] after a Gauss-Newton step from the given ones."""
    seen = _warped(source, places)
    down, across = torch.gradient(seen, spacing=2 / SIDE, dim=(2, 3))
    across = across / places[:, 0, None, None, None]
    down = down / places[:, 2, None, None, None]
    wide = across * MIDDLES
    high = down * MIDDLES[:, None]
    parts = [wide, across, high, down, seen, torch.ones_like(seen)]
    slopes = torch.stack(parts, -1).flatten(1, 3)  # [P, S S, 6]
    normal = slopes.mT @ slopes
    damping = 1e-4 * normal.diagonal(dim1=1, dim2=2) + 1e-6
    damped = normal + torch.diag_embed(damping)
    projected = slopes.mT @ target.flatten(1)[..., None]
    moves = torch.linalg.solve(damped, projected)[..., 0]
    gain = moves[:, 4:5].clamp(min=0.3)
    moved: torch.Tensor = places + (moves[:, :4] / gain).clamp(-0.1, 0.1)
    moved[:, ::2] = moved[:, ::2].clamp(*SCALES)
    return moved


def _warped(pictures: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the parts of pictures [P, C, S, S] that lie at scales and shifts [P, 4]."""
    across, down = (places[:, i, None] * MIDDLES + places[:, i + 1, None] for i in (0, 2))
    where = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)
    return F.grid_sample(pictures, where, padding_mode="border", align_corners=False)


def _blur(pictures: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pictures


def _details(pictures: torch.Tensor) -> torch.Tensor:
    coarse = F.avg_pool2d(pictures, COARSE)
    return pictures - F.interpolate(coarse, size=SIDE, mode="bilinear")


def _correlation_of_details(ones: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the correlation of pictures [P, C, S, S], each channel about its own mean [P]."""
    first, second = (part - part.mean((2, 3), keepdim=True) for part in (ones, others))
    lengths = first.flatten(1).norm(dim=1) * second.flatten(1).norm(dim=1)
    correlation: torch.Tensor = (first * second).flatten(1).sum(1) / lengths.clamp(min=1e-6)
    return correlation
