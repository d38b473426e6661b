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
# At a time.
QUERIES = 2**14
PAIRS = 2**14
PICTURES = 256
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

    def picture(row: int) -> Bytes:
        return small_picture(open_rgb(paths[row].as_py(), min_side=SIDE))

    pairs, distances = near_duplicates(hashes, thumbnails, picture)
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
    start = whole.offset * size
    end = start + len(whole) * size
    return buffer[start:end].reshape(len(whole), *shape)


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
        images = triples[:, [0, 2]]
        rows, positions = np.unique(images, return_inverse=True)
        pictures = np.stack([picture(row) for row in rows.tolist()])
        first, second = positions.reshape(-1, 2).T
        views = triples[:, 1].tolist()
        return detail_correlation(pictures[first], pictures[second], views)

    def similarities(triples: Ints) -> Floats:
        return similarity(thumbnails, triples)

    proposed = candidates(hashes)
    alike = _in_parts(similarities, proposed, PAIRS)
    is_similar = alike >= MIN_SIMILARITY
    proposed = proposed[is_similar]
    alike = alike[is_similar]
    pairs = np.sort(proposed[:, [0, 2]], axis=1)
    first, second = pairs.T
    most_alike_first = np.lexsort((-alike, second, first))
    proposed = proposed[most_alike_first]
    pairs = pairs[most_alike_first]
    pairs, first_rows = np.unique(pairs, axis=0, return_index=True)
    alike = _in_parts(details, proposed[first_rows], PICTURES)
    is_same = alike >= MIN_CORRELATION
    distances = 1 - alike[is_same]
    return pairs[is_same], distances.clip(min=0)


def _in_parts(score: Callable[[Ints], Floats], triples: Ints, size: int) -> Floats:
    """Return the scores of triples [P], so many at a time."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(triples), size):
        parts.append(score(triples[start : start + size]))
    return np.concatenate(parts)


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
        step = math.ceil(math.sqrt(len(whole)) / 4)
        index.add(whole[::step])
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
    first = first - first.mean((1, 2), keepdims=True)
    second = second - second.mean((1, 2), keepdims=True)
    first_deviation = np.sqrt((first**2).mean((1, 2)))
    second_deviation = np.sqrt((second**2).mean((1, 2)))
    is_plain = np.minimum(first_deviation, second_deviation) < CONTRAST
    product = (first * second).mean((1, 2))
    deviations = np.maximum(first_deviation * second_deviation, 1e-6)
    return np.where(is_plain, 0, product / deviations)


def detail_correlation(ones: Bytes, others: Bytes, views: Sequence[int]) -> Floats:
    """Return the correlation of the details of RGB pictures [P, S, S, 3] after alignment [P].

    The alignment starts from `views` [P]: which of VIEWS of the one the other shows.
    """
    first = torch.tensor(ones).float().permute(0, 3, 1, 2)
    second = torch.tensor(others).float().permute(0, 3, 1, 2)
    fits = _aligned(first.mean(1, True), second.mean(1, True), views)
    of_first = _details(_warped(first, fits))
    of_second = _details(second)
    middle = (..., slice(COARSE, -COARSE), slice(COARSE, -COARSE))
    return _correlation_of_details(of_first[middle], of_second[middle]).numpy()


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
        shift_across = (2 * across - 1) * room
        shift_down = (2 * down - 1) * room
        starts.append((share, shift_across, share, shift_down))
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
    scale_across, _, scale_down, _ = places.T[..., None, None, None]  # [P, 1, 1, 1] each
    down, across = torch.gradient(seen, spacing=2 / SIDE, dim=(2, 3))
    across = across / scale_across
    down = down / scale_down
    wide = across * MIDDLES
    high = down * MIDDLES[:, None]
    parts = [wide, across, high, down, seen, torch.ones_like(seen)]
    slopes = torch.stack(parts, -1).flatten(1, 3)  # [P, S S, 6]
    normal = slopes.mT @ slopes
    damping = 1e-4 * normal.diagonal(dim1=1, dim2=2) + 1e-6
    damped = normal + torch.diag_embed(damping)
    projected = slopes.mT @ target.flatten(1)[..., None]
    solution = torch.linalg.solve(damped, projected)[..., 0]
    gain = solution[:, 4:5].clamp(min=0.3)
    moves = solution[:, :4] / gain
    moved: torch.Tensor = places + moves.clamp(-0.1, 0.1)
    moved[:, ::2] = moved[:, ::2].clamp(*SCALES)
    return moved


def _warped(pictures: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the parts of pictures [P, C, S, S] that lie at scales and shifts [P, 4]."""
    scale_across, across, scale_down, down = places.T[..., None]  # [P, 1] each
    x = scale_across * MIDDLES + across
    y = scale_down * MIDDLES + down
    where = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
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
    first = ones - ones.mean((2, 3), keepdim=True)
    second = others - others.mean((2, 3), keepdim=True)
    lengths = first.flatten(1).norm(dim=1) * second.flatten(1).norm(dim=1)
    products = (first * second).flatten(1).sum(1)
    correlation: torch.Tensor = products / lengths.clamp(min=1e-6)
    return correlation
