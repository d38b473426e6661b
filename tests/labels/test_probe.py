import pytest
import torch
import torch.nn.functional as F
from support.worlds import World, generator

from latteclip.labels.fusion import LabelModel
from latteclip.labels.label_sources import LabelledRows, label_votes
from latteclip.labels.probe import Probe, predict_held_out

WORLD = World.of(600, 5, 16, noise=0.3)


def answers(rows, classes):
    shares = F.one_hot(classes[rows], 5).double()
    return LabelledRows(600, rows, shares, torch.zeros(len(rows), dtype=torch.bool))


def truth(rows, classes):
    return F.one_hot(classes[rows], 5).double()


def probe(rows, classes, models=(), scores=None):
    """A regression beside scores that say nothing, or beside others."""
    beside = torch.zeros(len(rows), 5).double() if scores is None else scores
    models = models or [WORLD.images()]
    return Probe.of(models, rows, truth(rows, classes), beside, 100.0)


def test_a_regression_on_answers_labels_the_other_images():
    found = probe(torch.arange(0, 600, 6), WORLD.classes)
    assert WORLD.right(found.log_probabilities(slice(None)).argmax(dim=1)) > 0.9


def test_no_answer_takes_part_in_its_own_prediction():
    rows = torch.arange(0, 600, 6)
    changed = WORLD.classes.clone()
    changed[rows[7]] = (changed[rows[7]] + 1) % 5
    models = [WORLD.images()]
    before, after = (
        predict_held_out(models, rows, truth(rows, classes))
        for classes in (WORLD.classes, changed)
    )
    assert torch.equal(before[7], after[7])
    assert not torch.equal(before[8], after[8])


def test_features_of_another_model_count():
    rows = torch.arange(0, 600, 6)
    noisy = World(WORLD.classes, torch.randn(600, 16, generator=generator(3)), WORLD.texts)
    alone = probe(rows, WORLD.classes, [noisy.images()])
    both = probe(rows, WORLD.classes, [noisy.images(), WORLD.other_model()])
    assert WORLD.right(alone.log_probabilities(slice(None)).argmax(dim=1)) < 0.5
    assert WORLD.right(both.log_probabilities(slice(None)).argmax(dim=1)) > 0.9


@pytest.mark.parametrize("shift, counts", [(0, False), (1, True)])
def test_a_regression_counts_where_the_posterior_is_wrong(shift, counts):
    rows = torch.arange(0, 600, 3)
    scores = (0.9 * truth(rows, (WORLD.classes + shift) % 5) + 0.02).log()
    posterior, regression = probe(rows, WORLD.classes, scores=scores).exponents
    assert (regression > 0.5 * posterior) == counts


def test_a_model_with_answers_has_a_regression_until_other_answers_come():
    model = LabelModel(WORLD.images(), label_votes(WORLD.classes, 5))
    first = model.answered(answers(torch.arange(0, 600, 6), WORLD.classes))
    first.fused()
    assert model.probe is None
    assert first.probe is not None
    assert first.answered(answers(torch.arange(9), WORLD.classes)).probe is None
