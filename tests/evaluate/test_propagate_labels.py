import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.tiny import write_index
from support.worlds import on_disk

from latteclip.clip import classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate import propagate_labels as stage
from latteclip.evaluate.propagate_labels import BruteForceIndex

N, M, C, D, K = 31, 9, 6, 5, 4
SETTINGS = stage.PropagationSettings(topk=5, neighbours=K, gamma=2.5, alpha=0.6)
CLASSNAMES = ["a", "b", "c", "d", "e", "f"]


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


# --- the reference: plain loops over lists, and a dense inverse ----------------------------------


def best(query, points, k, leave_out=None):
    """The k points of the largest cosine with the query, as (index, cosine)."""
    cosines = [
        (index, sum(a * b for a, b in zip(query, point, strict=True)))
        for index, point in enumerate(points)
        if index != leave_out
    ]
    return sorted(cosines, key=lambda pair: -pair[1])[:k]


def links_of(query, classes, images, settings, leave_out=None):
    """{node: weight} of the links of one image; classes are the first nodes."""
    links = {
        node: max(0, cosine) ** settings.gamma
        for node, cosine in best(query, classes, settings.neighbours)
    }
    for index, cosine in best(query, images, settings.neighbours, leave_out):
        links[len(classes) + index] = max(0, cosine)
    return links


def weights_of(classes, images, settings):
    """W as nested lists."""
    nodes = len(classes) + len(images)
    weights = [[0.0] * nodes for _ in range(nodes)]
    for index, image in enumerate(images):
        own = len(classes) + index
        for node, weight in links_of(image, classes, images, settings, leave_out=index).items():
            weights[own][node] += weight
            weights[node][own] += weight
    return weights


def inverse_root(degree):
    return 1 / math.sqrt(degree) if degree > 0 else 0.0


def scores_of(weights, alpha):
    """(I - alpha S)^-1 at the columns of the classes, in double precision."""
    roots = [inverse_root(sum(row)) for row in weights]
    system = [
        [(i == j) - alpha * roots[i] * weights[i][j] * roots[j] for j in range(len(weights))]
        for i in range(len(weights))
    ]
    return torch.linalg.inv(torch.tensor(system, dtype=torch.float64))[:, :C].tolist()


def test_scores_of(tests, classes, images, settings):
    """Scores [M][C] of test images."""
    weights = weights_of(classes, images, settings)
    scores = scores_of(weights, settings.alpha)
    result = []
    for test in tests:
        row = [0.0] * C
        for node, weight in links_of(test, classes, images, settings).items():
            root = inverse_root(sum(weights[node])) if settings.normalise_test_links else 1
            row = [s + weight * root * scores[node][c] for c, s in enumerate(row)]
        result.append(row)
    return torch.tensor(result)


test_scores_of.__test__ = False


# --- the maths ------------------------------------------------------------------------------------


def dense(graph):
    return graph.links.to_dense()


def link(classes, images, settings=SETTINGS):
    return stage.link(classes, images, BruteForceIndex(images), settings)


def classified(tests, graph, settings=SETTINGS):
    """Scores [M, C] of test images."""
    links = stage.neighbours(tests, graph.classes, graph.images, settings)
    scores = stage.propagate(graph, settings.alpha, range(len(graph.classes)))
    return stage.classify(links, graph, scores, settings)


def test_the_graph_equals_the_loop(classes, images):
    graph = link(classes, images)
    wanted = torch.tensor(weights_of(classes.tolist(), images.tolist(), SETTINGS))
    torch.testing.assert_close(dense(graph), wanted)
    torch.testing.assert_close(graph.degrees, wanted.sum(dim=1))


@pytest.mark.parametrize("alpha", [0.6, 0.95])
def test_propagated_scores_equal_the_inverse(classes, images, alpha):
    graph = link(classes, images)
    wanted = scores_of(weights_of(classes.tolist(), images.tolist(), SETTINGS), alpha)
    torch.testing.assert_close(
        stage.propagate(graph, alpha, range(C)), torch.tensor(wanted), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("normalise", [True, False])
def test_scores_of_test_images_equal_the_loop(classes, images, tests, normalise):
    settings = stage.PropagationSettings(
        topk=5, neighbours=K, gamma=2.5, alpha=0.6, normalise_test_links=normalise
    )
    graph = link(classes, images, settings)
    found = classified(tests, graph, settings)
    wanted = test_scores_of(tests.tolist(), classes.tolist(), images.tolist(), settings)
    assert found.shape == (M, C)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scores", [1, 2 * (C + N)])
def test_classes_are_ranked_whatever_is_propagated_at_once(
    monkeypatch, classes, images, tests, scores
):
    monkeypatch.setattr(stage, "SCORES", scores)
    classes[4] = classes[1]  # equal scores, in the order of the classes
    graph = link(classes, images)
    links = stage.neighbours(tests, classes, graph.images, SETTINGS)
    labels, best = stage.rank(links, graph, SETTINGS)
    wanted = classified(tests, graph)
    order = wanted.sort(dim=1, descending=True, stable=True).indices[:, :5]
    torch.testing.assert_close(best, wanted.gather(1, order))
    firm = (labels != 1) & (labels != 4)  # rounding may order these two
    assert torch.equal(labels[firm], order[firm])


def test_more_neighbours_than_there_are_are_all_of_them(classes):
    settings = stage.PropagationSettings(topk=5, neighbours=50)
    few = unit_vectors(3, 7)
    graph = link(classes, few, settings)
    wanted = torch.tensor(weights_of(classes.tolist(), few.tolist(), settings))
    torch.testing.assert_close(dense(graph), wanted)
    one = link(classes, few[:1], settings)
    assert not dense(one)[C:, C:].any()


def test_a_text_without_a_link_has_no_say():
    """The text of class 1 points away from all training images, and the test image towards it."""
    classes = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    images = F.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, 0.2, 0], [1.0, 0, 0.3]]), dim=1)
    settings = stage.PropagationSettings(topk=5, neighbours=2)
    graph = link(classes, images, settings)
    assert graph.degrees[1] == 0
    assert torch.isfinite(stage.propagate(graph, settings.alpha, range(2))).all()
    found = classified(F.normalize(torch.tensor([[-0.2, 1.0, 0]]), dim=1), graph, settings)
    assert found[0, 1] == 0
    assert torch.isfinite(found).all()


# --- the command ----------------------------------------------------------------------------------

SPLITS = (["train"] * 3 + ["test"]) * 7 + ["val"] * 3
LABELS = [number % C for number in range(len(SPLITS))]
IDS = [f"{number:02d}.png" for number in range(len(SPLITS))]
FEATURES = unit_vectors(len(SPLITS), 3)


def write_inputs(folder, classes, *, labels=LABELS, keep=None, features=FEATURES):
    """The three inputs; `keep`: the rows that they have."""
    folder.mkdir(exist_ok=True)
    rows = list(range(len(SPLITS))) if keep is None else keep
    ids, splits = [IDS[row] for row in rows], [SPLITS[row] for row in rows]
    index = write_index(
        folder / "images.parquet", ids, splits, [labels[row] for row in rows], CLASSNAMES
    )
    backwards = rows[::-1]
    tables.write(
        folder / "pseudo_labels.parquet",
        {
            "image_id": ids[::-1],
            "split": splits[::-1],
            "pseudo_label": [0] * len(rows),
            "confidence": [0.5] * len(rows),
            "topk_labels": [[0]] * len(rows),
            "topk_scores": [[0.5]] * len(rows),
            "image_features": tables.list_column(features[backwards].numpy()),
        },
        tables.PSEUDO_LABELS,
    )
    classifier.save_classifier(
        folder / "classes.safetensors",
        classifier.Classifier.of(classes),
        {"classnames": CLASSNAMES},
    )
    return index, str(folder / "pseudo_labels.parquet"), str(folder / "classes.safetensors")


def run(folder, inputs, settings=SETTINGS):
    """The predictions by image id, and the metrics."""
    predictions, figures = folder / "predictions.parquet", folder / "metrics.json"
    stage.propagate_labels(
        *inputs,
        settings,
        dataset="set",
        method="label_propagation",
        seed=0,
        predictions_output=str(predictions),
        metrics_output=str(figures),
        device="cpu",
        threads=1,
    )
    rows = tables.read(predictions, tables.PREDICTIONS)[0].to_pylist()
    return {row["image_id"]: row for row in rows}, json.loads(figures.read_text())


def test_the_test_split_is_classified_by_the_graph_of_the_other_images(tmp_path, classes):
    predictions, found = run(tmp_path, write_inputs(tmp_path, classes))
    trained = [row for row, split in enumerate(SPLITS) if split != "test"]
    tested = [row for row, split in enumerate(SPLITS) if split == "test"]
    wanted = test_scores_of(
        FEATURES[tested].tolist(), classes.tolist(), FEATURES[trained].tolist(), SETTINGS
    )
    assert list(predictions) == [IDS[row] for row in tested]
    for row, scores in zip(tested, wanted.tolist(), strict=True):
        order = sorted(range(C), key=lambda c, s=scores: -s[c])[:5]
        assert predictions[IDS[row]]["topk_labels"] == order
        assert predictions[IDS[row]]["prediction"] == order[0]
        assert predictions[IDS[row]]["topk_scores"] == pytest.approx(
            [scores[c] for c in order], rel=1e-4
        )
    hits = [predictions[IDS[row]]["prediction"] == LABELS[row] for row in tested]
    assert found["acc1"] == pytest.approx(sum(hits) / len(tested))
    assert found["method"] == "label_propagation"
    assert found["marks"] == []


def test_without_a_test_split_the_images_of_the_graph_are_classified(tmp_path, classes):
    trained = [row for row, split in enumerate(SPLITS) if split != "test"]
    predictions, found = run_in(tmp_path, classes, keep=trained)
    weights = weights_of(classes.tolist(), FEATURES[trained].tolist(), SETTINGS)
    wanted = scores_of(weights, SETTINGS.alpha)[C:]
    assert list(predictions) == [IDS[row] for row in trained] and found["acc1"] is None
    for row, scores in zip(trained, wanted, strict=True):
        assert predictions[IDS[row]]["prediction"] == max(range(C), key=lambda c, s=scores: s[c])


def run_in(folder, classes, **inputs):
    return run(folder, write_inputs(folder, classes, **inputs))


def test_no_label_changes_a_prediction_and_those_of_training_images_no_byte(tmp_path, classes):
    kept = [label if split == "test" else None for label, split in zip(LABELS, SPLITS, strict=True)]
    wrong = [
        label if split == "test" else (label + 1) % C
        for label, split in zip(LABELS, SPLITS, strict=True)
    ]
    written = set()
    for name, labels in {"with": LABELS, "without": kept, "wrong": wrong}.items():
        run_in(tmp_path / name, classes, labels=labels)
        files = ("predictions.parquet", "metrics.json")
        written.add(tuple((tmp_path / name / file).read_bytes() for file in files))
    assert len(written) == 1
    with_labels, _ = run_in(tmp_path / "with", classes)
    without, found = run_in(tmp_path / "none", classes, labels=[None] * len(SPLITS))
    for name, row in with_labels.items():
        assert without[name]["topk_scores"] == row["topk_scores"]
    assert found["acc1"] is None


def test_without_training_images_there_is_no_graph(tmp_path, classes):
    keep = [row for row, own in enumerate(SPLITS) if own == "test"]
    with pytest.raises(UserError, match=r"images\.parquet"):
        run_in(tmp_path / "empty", classes, keep=keep)
    assert not Path(tmp_path / "empty" / "metrics.json").exists()


# --- neighbours ---

CPU = torch.device("cpu")


def vectors(n, d, seed):
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
    points = vectors(31, 5, 1)
    queries = points if same else vectors(9, 5, 2)
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
def test_most_neighbours_of_cells_are_the_nearest_and_their_cosines_exact(monkeypatch, width, same):
    monkeypatch.setattr(stage, "MAX_BRUTE_FORCE", 100)
    points, others = clusters(5300, 20, width)[0].split(5000)
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
