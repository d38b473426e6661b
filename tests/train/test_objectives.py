from collections import Counter

import pytest
import torch
from support import reference
from support.objectives import SHAPES, Case, assert_same_rows

from latteclip.train.objectives.flyp import Flyp
from latteclip.train.objectives.latteclip import GroupSampler


@pytest.mark.parametrize("shape", SHAPES)
def test_flyp_equals_the_reference(shape):
    case = Case(*shape, seed=sum(shape))
    objective = Flyp(case.texts)
    objective.start_epoch()
    loss = objective.loss(case.batch())[0]
    wanted = case.reference_step(None, case.class_rows(), None).loss
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    case.assert_same_gradients(loss, wanted)
    assert_same_rows(objective.classifier(), case.class_rows())


SWITCHES = [
    {"alpha": 0.3},
    {"mixer_weights": False, "alpha": 0.3},
    {"class_description": False, "alpha": 0.3},
    {"image_description": False, "alpha": 0.3},
    {"group_description": False, "alpha": 0.3},
    {"image_description": False, "group_description": False, "alpha": 0.3},
    {
        "class_description": False,
        "group_description": False,
        "mixer_weights": False,
        "alpha": 0.3,
    },
    {"zero_shot_loss": False, "alpha": 0.3},
    {"finetuned_loss": False, "alpha": 0.3},
    {"prototypes": False},
    {"prototypes": False, "mixer_weights": False},
]


@pytest.mark.parametrize(
    ("shape", "switches"),
    [*((shape, {}) for shape in SHAPES), *(((5, 7, 11), one) for one in SWITCHES)],
    ids=str,
)
def test_latteclip_equals_the_reference(shape, switches):
    case = Case(*shape, seed=sum(shape))
    objective = case.latteclip(**switches)
    start = case.class_rows()
    assert_same_rows(objective.prototypes, start)
    objective.start_epoch()
    loss = objective.loss(case.batch())[0]
    step = case.reference_step(start, start, switches)
    torch.testing.assert_close(loss, step.loss, rtol=1e-5, atol=1e-6)
    case.assert_same_gradients(loss, step.loss)
    objective.after_step()
    if objective.switches.prototypes:
        assert_same_rows(objective.classifier(), reference.updated(start, step.values))


GROUP_LABELS = torch.tensor([2, 0, 2, 5, 2, 0])


def test_groups_are_drawn_from_their_class_each_equally_often():
    sampler = GroupSampler(GROUP_LABELS, 7, seed=0)
    drawn = sampler.draw(torch.tensor([2, 5, 0] * 1000))
    assert GROUP_LABELS[drawn].tolist() == [2, 5, 0] * 1000
    counts = Counter(drawn.tolist())
    assert all(counts[group] == pytest.approx(1000 / 3, rel=0.15) for group in (0, 2, 4))
    assert all(counts[group] == pytest.approx(500, rel=0.15) for group in (1, 5))
