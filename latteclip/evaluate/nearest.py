"""The nearest of many points: all of them compared, or of very many those of the likely cells.

Letters: P points, Q queries, D embedding width, K neighbours, R candidates.
"""

import logging
import math
from typing import Any, Protocol, cast

import torch

from latteclip.clip.feature_memmap import Features

log = logging.getLogger(__name__)
COMPARED = 100_000  # points on a CPU that are all compared with each other
SIMILARITIES = 2**26  # cosines held at once where all are compared: 256 MiB
QUERIES = 1024  # at once where few are compared: their candidates take as much
CANDIDATES = 64  # R at least, of which the exact cosines are computed
PROBED = 64  # cells that are searched for each query
TAUGHT = 64  # points of each cell that cells are learned from
SEED = 0


class Points(Protocol):
    """P points, L2-normalised."""

    at_once: int  # queries

    def __len__(self) -> int: ...

    def nearest(
        self, queries: torch.Tensor, k: int, first: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k points of the largest cosine with each query.

        Args:
            queries: [Q, D], L2-normalised.
            k: at most P, and less where there is `first`.
            first: queries are the points from this one on, and none is its own neighbour.

        Returns:
            Cosines and indices of the points, both [Q, k], nearest first.
        """


def points(features: Features, device: torch.device) -> Points:
    """Points [P, D] by the way in which their neighbours are found on a device."""
    if device.type == "cpu" and len(features) > COMPARED:
        return Cells(features)
    there = torch.empty(features.shape, device=device)
    for start in range(0, len(there), QUERIES):
        there[start : start + QUERIES] = features[start : start + QUERIES].to(device)
    return Compared(there)


class Compared:
    """Points in memory, which are all compared with a query."""

    def __init__(self, points: torch.Tensor) -> None:
        self.points = points  # [P, D]
        self.at_once = max(1, SIMILARITIES // len(points))

    def __len__(self) -> int:
        return len(self.points)

    def nearest(
        self, queries: torch.Tensor, k: int, first: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cosines = queries @ self.points.T  # [Q, P]
        if first is not None:
            cosines[:, first:].diagonal().fill_(-math.inf)
        found = cosines.topk(k, dim=1)
        return found.values, found.indices


class Cells:
    """Points on the disk, of which an index in memory says which are likely to be near.

    Points are shared out among cells around centroids and kept as codes of two bits a dimension
    (inverted lists with product quantisation: Jegou, Douze, Schmid 2011; in registers: Andre,
    Kermarrec, Le Scouarnec 2017; both by faiss). Exact cosines choose among the candidates that the
    codes propose. The same points give the same neighbours.
    """

    at_once = QUERIES

    def __init__(self, features: Features) -> None:
        import faiss

        self._features = features
        n, width = features.shape
        n_cells = max(1, min(round(2 * math.sqrt(n)), n // 40))
        faiss.omp_set_num_threads(torch.get_num_threads())
        kind = f"IVF{n_cells},PQ{_codes(width)}x4fs"
        self._index = cast(Any, faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT))
        self._index.nprobe = PROBED
        for clustering in (self._index.cp, self._index.pq.cp):
            clustering.seed, clustering.max_points_per_centroid = SEED, TAUGHT
        draw = torch.Generator().manual_seed(SEED)
        taught = torch.randperm(n, generator=draw)[: TAUGHT * n_cells].sort().values
        self._index.train(features[taught].numpy())
        for start in range(0, n, QUERIES):
            self._index.add(features[start : start + QUERIES].numpy())
        log.info("Neighbours of %d images are looked for in %d cells.", n, n_cells)

    def __len__(self) -> int:
        return len(self._features)

    def nearest(
        self, queries: torch.Tensor, k: int, first: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        among = max(CANDIDATES, k + 1)  # a point itself may be one of them
        _, found = self._index.search(queries.numpy(), among)
        candidates = torch.from_numpy(found)  # [Q, R], -1 where there are fewer
        cosines = torch.einsum("qd,qrd->qr", queries, self._features[candidates.clamp(min=0)])
        excluded = candidates < 0
        if first is not None:
            excluded |= candidates == torch.arange(first, first + len(queries))[:, None]
        best = cosines.masked_fill(excluded, -math.inf).topk(k, dim=1)
        return best.values, candidates.gather(1, best.indices)


def _codes(width: int) -> int:
    """Of how many codes of four bits a point is made: one for two dimensions, where that fits."""
    return width if width % 2 else width // 2
