import pytest
import torch
import torch.nn.functional as F

from latteclip.clip import classifier as ranking
from latteclip.clip.classifier import Classifier, best_classes

N, C, D, K = 23, 7, 5, 3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit_vectors(n, seed):
    return F.normalize(torch.randn(n, D, generator=generator(seed)), dim=1)


def test_equal_scores_are_ordered_by_class():
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.7, 0.5]])
    assert best_classes(scores, 5)[0].tolist() == [[1, 3, 0, 2, 4]]
    flat = torch.zeros(3, 40)
    assert torch.equal(best_classes(flat, 40)[0], torch.arange(40).expand(3, 40))
    assert torch.equal(best_classes(flat, 1)[0][:, 0], flat.argmax(dim=1))


@pytest.mark.parametrize("values", [2, 5, 1000])
@pytest.mark.parametrize("k", [1, K, C, C + 2])
def test_the_best_classes_are_those_of_a_stable_sort_of_all(values, k):
    scores = torch.randint(values, (200, C), generator=generator(values)).float() / values
    wanted = scores.sort(dim=1, descending=True, stable=True)
    labels, best = best_classes(scores, k)
    assert torch.equal(labels, wanted.indices[:, :k])
    assert torch.equal(best, wanted.values[:, :k])


def test_images_are_classified_in_parts(monkeypatch):
    images, classifier = unit_vectors(N, 1), unit_vectors(C, 2)
    labels, best = best_classes(images @ classifier.T, K)
    monkeypatch.setattr(ranking, "ROWS", 4)
    in_parts = ranking.classify(images, Classifier.of(classifier), K)
    assert torch.equal(in_parts[0], labels)
    torch.testing.assert_close(in_parts[1], best)
