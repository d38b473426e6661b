import pytest
import torch
import torch.nn.functional as F
from support.worlds import on_disk

from latteclip.evaluate import propagate_labels as stage

CPU = torch.device("cpu")


def unit_vectors(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator), dim=1)


def clusters(n, c, d, *, seed=0, spread=4.0):
    """Points around c directions, as features lie: most of their spread is in few dimensions."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randint(c, (n,), generator=draw)
    centres, falling = torch.randn(c, d, generator=draw), torch.arange(1, d + 1) ** -0.5
    around = spread * falling * torch.randn(n, d, generator=draw)
    return F.normalize(centres[classes] + around, dim=1), classes, F.normalize(centres, dim=1)


def in_parts(there, points, k, same):
    """Neighbours of points among themselves or, as queries, among others."""
    parts = range(0, len(points), there.at_once)
    found = [there.nearest(points[i : i + there.at_once], k, i if same else None) for i in parts]
    return (torch.cat(each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("similarities", [1, 90])
@pytest.mark.parametrize("same", [True, False])
def test_compared_points_equal_the_loop_whatever_is_held_at_once(monkeypatch, similarities, same):
    monkeypatch.setattr(stage, "SIMILARITIES", similarities)
    points = unit_vectors(31, 5, 1)
    queries = points if same else unit_vectors(9, 5, 2)
    cosines, indices = in_parts(stage.points(points, CPU), queries, 4, same)
    for row, query in enumerate(queries):
        every = {i: (query @ point).item() for i, point in enumerate(points)}
        if same:
            del every[row]
        wanted = sorted(every, key=every.get, reverse=True)[:4]
        assert indices[row].tolist() == wanted
        assert cosines[row].tolist() == pytest.approx([every[i] for i in wanted])


@pytest.mark.parametrize("width", [30, 7])
@pytest.mark.parametrize("same", [True, False])
def test_most_neighbours_of_cells_are_the_nearest_and_their_cosines_exact(monkeypatch, width, same):
    monkeypatch.setattr(stage, "COMPARED", 100)
    points, others = clusters(5300, 20, width)[0].split(5000)
    queries = points if same else others
    cells = stage.points(on_disk(points), CPU)
    assert isinstance(cells, stage.Cells)
    cosines, indices = in_parts(cells, queries, 5, same)
    exact = stage.Compared(points).nearest(queries, 5, 0 if same else None)[1]
    torch.testing.assert_close(cosines, (queries[:, None] * points[indices]).sum(dim=2))
    hits = (indices[:, :, None] == exact[:, None]).any(dim=2)
    assert hits.double().mean() > 0.95
    if same:
        assert (indices != torch.arange(5000)[:, None]).all()


def test_cells_give_as_many_neighbours_as_are_asked_for():
    points, _, _ = clusters(4000, 20, 32)
    k = stage.CANDIDATES + 6
    cosines, indices = stage.Cells(points).nearest(points[:50], k, 0)
    assert indices.shape == (50, k)
    assert not (indices == torch.arange(50)[:, None]).any()
    assert cosines.isfinite().all()


def test_where_a_query_finds_too_few_the_rest_have_no_weight():
    few = unit_vectors(45, 8, 0)
    cosines, _ = stage.Cells(few).nearest(few[:1], 45, 0)
    assert cosines[0, -1] == -torch.inf


def test_labels_by_cells_are_as_right_as_by_comparing_all():
    points, classes, _ = clusters(10_000, 50, 64, spread=8.0)
    texts = F.normalize(
        torch.stack([points[classes == c].mean(dim=0) for c in range(50)])
        + 0.1 * torch.randn(50, 64, generator=torch.Generator().manual_seed(5)),
        dim=1,
    )
    features, tests, settings = points[:8000], points[8000:], stage.PropagationSettings(topk=5)
    right = []
    for kind in (stage.Compared, stage.Cells):
        graph = stage.link(texts, features, kind(features), settings)
        links = stage.neighbours(tests, texts, graph.images, settings)
        labels, _ = stage.rank(links, graph, settings)
        right.append((labels[:, 0] == classes[8000:]).double().mean().item())
    assert 0.3 < right[0] < 0.999
    assert right[1] == pytest.approx(right[0], abs=0.003)
