"""Labels propagated from class texts over unlabelled images: a baseline without training.

ZLaP (Stojnic, Kalantidis, Tolias, CVPR 2024, arXiv 2404.04072) in its inductive form. The graph
joins the texts of the classes and the training images. Test images are linked to it one by one.
Letters: N training images, M test images, C classes, D embedding width, Q queries, P points,
K neighbours, V = C + N nodes: the classes, then the training images.
"""

import logging
import math
from typing import Any, cast

import torch

from latteclip.clip.classifier import Features, best_classes, load_classifier, parts
from latteclip.config.sections.base import Section
from latteclip.config.sections.graph import GraphSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.evaluate import metrics
from latteclip.labels.features import read_features

log = logging.getLogger(__name__)
MAX_BRUTE_FORCE = 100_000  # points on a CPU that are all compared with each other
SIMILARITIES = 2**26  # cosines held at once where all are compared: 256 MiB
QUERIES = 1024  # at once where few are compared: their candidates take as much
CANDIDATES = 64  # R at least, of which the exact cosines are computed
PROBES = 64  # cells that are searched for each query
TRAIN_POINTS = 64  # points of each cell that cells are learned from
SEED = 0
# Number of scores (nodes times classes) that are propagated at once: 256 MiB.
SCORES = 2**26
TOLERANCE = 1e-8  # largest error of the propagated scores, relative to what is propagated


class BruteForceIndex:
    """Points [P, D] in memory, L2-normalised, which are all compared with a query."""

    def __init__(self, points: torch.Tensor) -> None:
        self.n = len(points)
        self.points = points
        self.at_once = max(1, SIMILARITIES // self.n)

    def nearest(
        self, queries: torch.Tensor, k: int, first: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and indices of the k points nearest to each query [Q, D], both [Q, k].

        With `first`, queries are the points from this one on, and none is its own neighbour.
        """
        cosines = queries @ self.points.T  # [Q, P]
        if first is not None:
            cosines[:, first:].diagonal().fill_(-math.inf)
        nearest = cosines.topk(k, dim=1)
        return nearest.values, nearest.indices


class IVFPQIndex:
    """Points on disk, and in memory an index of faiss: cells of codes of two bits a dimension.

    Exact cosines choose among the candidates that the codes propose.
    """

    at_once = QUERIES

    def __init__(self, features: Features) -> None:
        import faiss

        self._features = features
        self.n, width = features.shape
        n_cells = max(1, min(round(2 * math.sqrt(self.n)), self.n // 40))
        faiss.omp_set_num_threads(torch.get_num_threads())
        # A code has four bits: one code for two dimensions if their number is even.
        codes = width if width % 2 else width // 2
        kind = f"IVF{n_cells},PQ{codes}x4fs"
        self._index = cast(
            Any, faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
        )
        self._index.nprobe = PROBES
        for clustering in (self._index.cp, self._index.pq.cp):
            clustering.seed = SEED
            clustering.max_points_per_centroid = TRAIN_POINTS
        draw = torch.Generator().manual_seed(SEED)
        sample = (
            torch.randperm(self.n, generator=draw)[: TRAIN_POINTS * n_cells].sort().values
        )
        self._index.train(features[sample].numpy())
        for rows in parts(self.n, QUERIES):
            self._index.add(features[rows].numpy())
        log.info("Neighbours of %d images are looked for in %d cells.", self.n, n_cells)

    def nearest(
        self, queries: torch.Tensor, k: int, first: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        among = max(CANDIDATES, k + 1)  # a point itself may be one of them
        _, rows = self._index.search(queries.numpy(), among)
        candidates = torch.from_numpy(rows)  # [Q, R], -1 where there are fewer
        cosines = torch.einsum(
            "qd,qrd->qr", queries, self._features[candidates.clamp(min=0)]
        )
        excluded = candidates < 0
        if first is not None:
            excluded |= candidates == torch.arange(first, first + len(queries))[:, None]
        best = cosines.masked_fill(excluded, -math.inf).topk(k, dim=1)
        return best.values, candidates.gather(1, best.indices)


def neighbour_index(
    features: Features, device: torch.device
) -> BruteForceIndex | IVFPQIndex:
    """Return the index of points [P, D] that suits their number and the device."""
    if device.type == "cpu" and len(features) > MAX_BRUTE_FORCE:
        return IVFPQIndex(features)
    there = torch.empty(features.shape, device=device)
    for rows in parts(len(there), QUERIES):
        there[rows] = features[rows].to(device)
    return BruteForceIndex(there)


class PropagationSettings(Section):
    """How the graph is made, with the defaults of the authors' code."""

    graph: GraphSection
    inference: InferenceSection  # its `topk`


class NeighbourGraph:
    """The class texts [C, D] and the training images, features [N, D], with their links.

    W = A + A^T, where A has the links of the images. Class texts start no links.
    """

    def __init__(
        self,
        classes: torch.Tensor,
        features: Features,
        images: BruteForceIndex | IVFPQIndex,
        settings: PropagationSettings,
    ) -> None:
        self.classes = classes
        self.images = images
        self.settings = settings
        one_way = self.neighbours(features, same=True)
        rows, columns = one_way.indices()
        rows = len(classes) + rows
        nodes = len(classes) + images.n
        # [V, V] sparse: W, symmetric, with a zero diagonal.
        self.links = _sparse(
            rows=torch.cat([rows, columns]),
            columns=torch.cat([columns, rows]),
            weights=one_way.values().repeat(2),
            shape=(nodes, nodes),
        )
        degrees = torch.sparse.sum(self.links, 1).to_dense()  # [V] row sums
        # 0 for a node without links.
        self.scale = torch.where(degrees > 0, degrees.rsqrt(), 0)

    def neighbours(self, queries: Features, *, same: bool = False) -> torch.Tensor:
        """Return the links [Q, V] sparse of images [Q, D] to the K nearest texts and images.

        A link weighs as much as the cosine, to the power gamma for a text. A negative cosine makes
        no link. Where queries and images are the same, none is its own neighbour.
        """
        texts = BruteForceIndex(self.classes)
        k = self.settings.graph.neighbours
        weights = []
        nodes = []
        for rows in parts(len(queries), self.images.at_once):
            part = queries[rows].to(self.classes.device)
            first = rows.start if same else None
            to_classes, class_index = texts.nearest(part, min(k, texts.n))
            to_images, image_index = self.images.nearest(
                part, min(k, self.images.n - same), first
            )
            to_classes = to_classes.clamp(min=0) ** self.settings.graph.gamma
            weights.append(torch.cat([to_classes, to_images.clamp(min=0)], 1))
            # [part, up to 2 K]
            nodes.append(torch.cat([class_index, texts.n + image_index], 1))
        columns = torch.cat(nodes)
        starts = torch.arange(len(queries), device=columns.device)[:, None].expand_as(
            columns
        )
        shape = len(queries), texts.n + self.images.n
        return _sparse(starts, columns, torch.cat(weights), shape)

    def propagate(self, classes: slice) -> torch.Tensor:
        """Return scores Z [V, c] of every node for c classes: columns of (I - alpha S)^-1 Y.

        S = D^-1/2 W D^-1/2 with degrees D, and Y marks the texts of the classes. Z is the limit of
        Z <- alpha S Z + Y (Zhou et al. 2003), alpha^(t + 1) / (1 - alpha) from it after t steps.
        """
        alpha = self.settings.graph.alpha
        rows, columns = self.links.indices()
        spread = torch.sparse_coo_tensor(
            self.links.indices(),
            alpha * self.scale[rows] * self.links.values() * self.scale[columns],
            self.links.shape,
            check_invariants=False,  # they are those of the links
            is_coalesced=True,
        )
        scores = torch.zeros(
            len(self.scale), classes.stop - classes.start, device=spread.device
        )
        scores[classes].diagonal().fill_(1)  # Y
        for _ in range(math.ceil(math.log(TOLERANCE * (1 - alpha), alpha))):
            scores = torch.sparse.mm(spread, scores)
            scores[classes].diagonal().add_(1)
        return scores

    def rank(self, tests: Features | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best classes of test images [M, D] and their scores, both [M, topk].

        None: the N training images are ranked themselves. A test image x with links w scores
        sum_j w_xj d_j^-1/2 Z_j, as if it received and sent nothing back. The authors' code leaves
        d_j out, which gives the texts much more weight.
        """
        links = None if tests is None else self.neighbours(tests)
        n = self.images.n if tests is None else len(tests)
        n_classes = len(self.classes)
        labels = torch.empty(n, 0, dtype=torch.long)
        best = torch.empty(n, 0)
        for some in parts(n_classes, max(1, SCORES // len(self.scale))):
            scores = self.propagate(some)  # [V, c]
            if links is not None:
                scores = self.scale[:, None] * scores
            scores = scores[n_classes:] if links is None else torch.sparse.mm(links, scores)
            scores = scores.cpu()
            order, best = best_classes(
                torch.cat([best, scores], 1), self.settings.inference.topk
            )
            numbers = torch.arange(some.start, some.stop).expand_as(scores)
            labels = torch.cat([labels, numbers], 1).gather(1, order)
        return labels, best


def propagate_labels(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: PropagationSettings,
    *,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    device: str,
    threads: int,
) -> None:
    """Fit the graph on the images that are not in the test split, and classify those that are.

    Without a test split the images of the graph themselves are classified.
    """
    picked = devices.pick(device, threads)
    where = picked if picked.type == "cuda" else torch.device("cpu")  # for sparse matrices
    training, names = tables.read_unlabelled(images_path, training=True)
    classes, _ = load_classifier(class_embeddings_path, classnames=names)
    if len(training) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    evaluated, _ = metrics.read_evaluated_images(images_path, dataset)
    features = read_features(pseudo_labels_path, training["image_id"])  # [N, D]
    graph = NeighbourGraph(
        classes.weights.to(where), features, neighbour_index(features, where), settings
    )
    tests = None
    if evaluated["split"][0].as_py() == "test":
        tests = read_features(pseudo_labels_path, evaluated["image_id"])  # [M, D]
    ranked, best = graph.rank(tests)
    metrics.write(
        evaluated,
        names,
        ranked=ranked.numpy(),
        scores=best.numpy(),
        flags=[],
        run=(dataset, method, seed),
        predictions_output=predictions_output,
        metrics_output=metrics_output,
    )


def _sparse(
    rows: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Return a sparse matrix of the weights, summed where they share a place."""
    places = torch.stack([rows.flatten(), columns.flatten()])
    values = weights.flatten()
    return torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()
