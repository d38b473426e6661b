import torch

from latteclip.clip.ranking import best_classes


def test_best_classes_come_best_first_with_their_scores():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    labels, best = best_classes(scores, 3)
    assert labels.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert torch.equal(best, scores.gather(1, labels))


def test_equal_scores_are_ordered_by_class():
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.7, 0.5]])
    assert best_classes(scores, 5)[0].tolist() == [[1, 3, 0, 2, 4]]
    flat = torch.zeros(3, 40)
    assert torch.equal(best_classes(flat, 40)[0], torch.arange(40).expand(3, 40))
    assert torch.equal(best_classes(flat, 1)[0][:, 0], flat.argmax(dim=1))


def test_no_more_classes_are_kept_than_there_are():
    labels, best = best_classes(torch.rand(4, 3), 5)
    assert labels.shape == best.shape == (4, 3)
