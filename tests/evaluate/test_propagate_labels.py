import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.sections import changed
from support.worlds import World, on_disk
from support.zero_shot_files import ZeroShotFiles

from latteclip.config.sections.graph import GraphSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate import propagate_labels as stage
from latteclip.evaluate.propagate_labels import BruteForceIndex

N, M, C, D, K = 31, 9, 6, 5, 4
GRAPH = GraphSection(neighbours=K, gamma=2.5, alpha=0.6)


def unit_vectors(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, D, generator=generator), dim=1)


@pytest.fixture
def classes():
    return unit_vectors(C, 0)


@pytest.fixture
def images():
    return unit_vectors(N, 1)


@pytest.fixture
def tests():
    return unit_vectors(M, 2)


# --- the reference: dense matrices and an inverse, in double precision ----------------------------


def dense_links(queries, classes, images, settings, *, same=False):
    """Links [Q, C + N] of images."""

    def nearest(points, *, same=False):
        cosines = queries @ points.T
        if same:
            cosines.fill_diagonal_(-math.inf)
        k = min(settings.neighbours, len(points) - same)
        best = cosines.sort(dim=1, descending=True, stable=True).indices[:, :k]
        nothing = torch.zeros_like(cosines)
        return nothing.scatter(1, best, cosines.gather(1, best).clamp(min=0))

    return torch.cat(
        [nearest(classes) ** settings.gamma, nearest(images, same=same)], dim=1
    )


def reference(classes, images, settings):
    """(I - alpha S)^-1 at the columns of the classes [V, C], and roots of the degrees [V]."""
    c, v = len(classes), len(classes) + len(images)
    one_way = torch.zeros(v, v, dtype=torch.float64)
    one_way[c:] = dense_links(images, classes, images, settings, same=True)
    weights = one_way + one_way.T
    roots = torch.where(weights.sum(dim=1) > 0, weights.sum(dim=1) ** -0.5, 0.0)
    system = torch.eye(v).double() - settings.alpha * roots[:, None] * weights * roots
    return torch.linalg.inv(system)[:, :c], roots


def scores_of(tests, classes, images, settings):
    """Scores [M, C] of test images."""
    tests, classes, images = tests.double(), classes.double(), images.double()
    scores, roots = reference(classes, images, settings)
    scores = roots[:, None] * scores
    return (dense_links(tests, classes, images, settings) @ scores).float()


# --- the maths ------------------------------------------------------------------------------------


def link(classes, images, settings=GRAPH):
    settings = stage.PropagationSettings(graph=settings, inference=InferenceSection())
    return stage.NeighbourGraph(classes, images, BruteForceIndex(images), settings)


def classified(tests, graph):
    """Scores [M, C] of test images."""
    inference = InferenceSection(topk=max(5, len(graph.classes)))
    graph.settings = changed(graph.settings, inference=inference)
    labels, scores = graph.rank(tests)
    return scores.gather(1, labels.argsort(dim=1))


@pytest.mark.parametrize("alpha", [0.6, 0.95])
def test_propagated_scores_equal_the_inverse(classes, images, alpha):
    settings = changed(GRAPH, alpha=alpha)
    graph = link(classes, images, settings)
    wanted = reference(classes.double(), images.double(), settings)[0].float()
    torch.testing.assert_close(graph.propagate(slice(0, C)), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n", "neighbours"), [(N, K), (3, 50), (1, 50)])
def test_scores_of_test_images_equal_the_loop(classes, tests, n, neighbours):
    """Where there are fewer neighbours, all are taken."""
    settings = changed(GRAPH, neighbours=neighbours)
    images = unit_vectors(n, 1)
    graph = link(classes, images, settings)
    found = classified(tests, graph)
    wanted = scores_of(tests, classes, images, settings)
    assert found.shape == (M, C)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scores", [1, 2 * (C + N)])
def test_classes_are_ranked_whatever_is_propagated_at_once(
    monkeypatch, classes, images, tests, scores
):
    monkeypatch.setattr(stage, "SCORES", scores)
    classes[4] = classes[1]  # equal scores, in the order of the classes
    graph = link(classes, images)
    labels, best = graph.rank(tests)
    wanted = scores_of(tests, classes, images, GRAPH)
    order = wanted.sort(dim=1, descending=True, stable=True).indices[:, :5]
    torch.testing.assert_close(best, wanted.gather(1, order), rtol=1e-4, atol=1e-6)
    firm = (labels != 1) & (labels != 4)  # rounding may order these two
    assert torch.equal(labels[firm], order[firm])


def test_a_text_without_a_link_has_no_say():
    """The text of class 1 points away from all training images, and the test image towards it."""
    classes = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    images = F.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, 0.2, 0], [1.0, 0, 0.3]]), dim=1)
    settings = GraphSection(neighbours=2)
    graph = link(classes, images, settings)
    assert graph.scale[1] == 0
    assert torch.isfinite(graph.propagate(slice(0, 2))).all()
    found = classified(F.normalize(torch.tensor([[-0.2, 1.0, 0]]), dim=1), graph)
    assert found[0, 1] == 0
    assert torch.isfinite(found).all()


# --- the command ----------------------------------------------------------------------------------


class Dataset(ZeroShotFiles):
    """Features and classes at random; every fourth image is a test image."""

    def run(self):
        """The predictions by image id, and the metrics."""
        predictions, figures = self.path("predictions.parquet"), self.path("metrics.json")
        stage.propagate_labels(
            *self.write(),
            stage.PropagationSettings(graph=GRAPH, inference=InferenceSection()),
            dataset="set",
            method="label_propagation",
            seed=0,
            predictions_output=predictions,
            metrics_output=figures,
            device="cpu",
            threads=1,
        )
        rows = tables.read(predictions, tables.PREDICTIONS).to_pylist()
        return {row["image_id"]: row for row in rows}, json.loads(Path(figures).read_text())


@pytest.fixture
def dataset(tmp_path, classes):
    return Dataset(tmp_path, World(torch.arange(N) % C, unit_vectors(N, 3), classes))


def test_the_test_split_is_classified_by_the_graph_of_the_other_images(dataset, classes):
    predictions, found = dataset.run()
    features, tested = dataset.world.features, range(3, N, 4)
    wanted = scores_of(features[tested], classes, features[dataset.training], GRAPH)
    assert list(predictions) == [dataset.names[row] for row in tested]
    for row, scores in zip(predictions.values(), wanted.tolist(), strict=True):
        order = sorted(range(C), key=lambda c, s=scores: -s[c])[:5]
        assert (row["prediction"], row["topk_labels"]) == (order[0], order)
        assert row["topk_scores"] == pytest.approx([scores[c] for c in order], rel=1e-4)
    hits = [row["prediction"] == row["label"] for row in predictions.values()]
    assert found["acc1"] == pytest.approx(sum(hits) / len(hits))
    assert (found["method"], found["flags"]) == ("label_propagation", [])


def test_without_a_test_split_the_images_of_the_graph_are_classified(dataset, classes):
    dataset.splits = ["train"] * N
    predictions, found = dataset.run()
    scores, _ = reference(classes.double(), dataset.world.features.double(), GRAPH)
    assert list(predictions) == dataset.names and found["acc1"] is None
    assert [row["prediction"] for row in predictions.values()] == scores[C:].argmax(
        dim=1
    ).tolist()


def test_no_label_changes_a_prediction_and_those_of_training_images_no_byte(dataset):
    files = ("predictions.parquet", "metrics.json")
    with_labels, _ = dataset.run()
    before, is_test = dataset.written(*files), [split == "test" for split in dataset.splits]
    pairs = list(zip(dataset.labels, is_test, strict=True))
    for wrong in (lambda label: None, lambda label: (label + 1) % C):
        dataset.labels = [label if test else wrong(label) for label, test in pairs]
        dataset.run()
        assert dataset.written(*files) == before
    dataset.labels = [None] * N
    without, found = dataset.run()
    for name, row in with_labels.items():
        assert without[name]["topk_scores"] == row["topk_scores"]
    assert found["acc1"] is None


def test_without_training_images_there_is_no_graph(dataset):
    dataset.splits = ["test"] * N
    with pytest.raises(UserError, match=r"images\.parquet"):
        dataset.run()
    assert not Path(dataset.path("metrics.json")).exists()


# --- neighbours -----------------------------------------------------------------------------------

CPU = torch.device("cpu")


def clusters(n, c, d):
    """Points around c directions, as features lie: most of their spread is in few dimensions."""
    draw = torch.Generator().manual_seed(0)
    classes = torch.randint(c, (n,), generator=draw)
    centres, falling = torch.randn(c, d, generator=draw), torch.arange(1, d + 1) ** -0.5
    return F.normalize(
        centres[classes] + 4 * falling * torch.randn(n, d, generator=draw), dim=1
    )


def in_parts(there, points, k, same):
    """Neighbours of points among themselves or, as queries, among others."""
    parts = range(0, len(points), there.at_once)
    found = [
        there.nearest(points[i : i + there.at_once], k, i if same else None) for i in parts
    ]
    return (torch.cat(each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("similarities", [1, 90])
@pytest.mark.parametrize("same", [True, False])
def test_compared_points_equal_the_loop_whatever_is_held_at_once(
    monkeypatch, similarities, same
):
    monkeypatch.setattr(stage, "SIMILARITIES", similarities)
    points = unit_vectors(31, 1)
    queries = points if same else unit_vectors(9, 2)
    cosines, indices = in_parts(stage.neighbour_index(points, CPU), queries, 4, same)
    for row, query in enumerate(queries):
        every = {i: (query @ point).item() for i, point in enumerate(points)}
        if same:
            del every[row]
        wanted = sorted(every, key=every.get, reverse=True)[:4]
        assert indices[row].tolist() == wanted
        assert cosines[row].tolist() == pytest.approx([every[i] for i in wanted])


@pytest.mark.parametrize("width", [30, 7])
@pytest.mark.parametrize("same", [True, False])
def test_most_neighbours_of_cells_are_the_nearest_and_their_cosines_exact(
    monkeypatch, width, same
):
    monkeypatch.setattr(stage, "MAX_BRUTE_FORCE", 100)
    points, others = clusters(5300, 20, width).split(5000)
    queries = points if same else others
    cells = stage.neighbour_index(on_disk(points), CPU)
    assert isinstance(cells, stage.IVFPQIndex)
    cosines, indices = in_parts(cells, queries, 5, same)
    exact = stage.BruteForceIndex(points).nearest(queries, 5, 0 if same else None)[1]
    torch.testing.assert_close(cosines, (queries[:, None] * points[indices]).sum(dim=2))
    hits = (indices[:, :, None] == exact[:, None]).any(dim=2)
    assert hits.double().mean() > 0.95
    if same:
        assert (indices != torch.arange(5000)[:, None]).all()
