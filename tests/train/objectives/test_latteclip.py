from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from support import reference
from support.objectives import SHAPES, Case, assert_same_rows
from support.tiny import WIDTH

from latteclip.train.objectives.base import contrastive
from latteclip.train.objectives.latteclip import (
    MARGIN_FLOOR,
    GroupSampler,
    margins,
    update,
)

SWITCHES = [
    {},
    {"alpha": 0.3},
    {"mixer_weights": False, "alpha": 0.3},
    {"class_description": False, "alpha": 0.3},
    {"image_description": False, "alpha": 0.3},
    {"group_description": False, "alpha": 0.3},
    {"image_description": False, "group_description": False, "alpha": 0.3},
    {"class_description": False, "group_description": False, "mixer_weights": False, "alpha": 0.3},
    {"zero_shot_loss": False, "alpha": 0.3},
    {"finetuned_loss": False, "alpha": 0.3},
    {"prototypes": False},
    {"prototypes": False, "mixer_weights": False},
]


def assert_latteclip_equals_the_reference(case, switches):
    objective = case.latteclip(**switches)
    start = [row.detach() for row in reference.class_features(case.clip, case.class_texts)]
    assert_same_rows(objective.prototypes, start)
    objective.start_epoch()
    loss = objective.loss(case.batch()).loss
    step = case.reference_step(start, start, switches)
    torch.testing.assert_close(loss, step.loss, rtol=1e-5, atol=1e-6)
    case.assert_same_gradients(loss, step.loss)
    objective.after_step()
    if objective.switches.prototypes:
        assert_same_rows(objective.classifier(), reference.updated(start, step.values))


@pytest.mark.parametrize("shape", SHAPES)
def test_latteclip_equals_the_reference(shape):
    assert_latteclip_equals_the_reference(Case(*shape, seed=sum(shape)), {})


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_each_switch_equals_the_reference(switches):
    assert_latteclip_equals_the_reference(Case(5, 7, 11), switches)


@pytest.mark.parametrize("mixer_prototypes", ["step", "epoch"])
def test_second_step_weighs_against_the_prototypes_of_the_step_or_of_the_epoch(mixer_prototypes):
    case = Case(5, 7, 11)
    switches = {"mixer_prototypes": mixer_prototypes, "alpha": 0.7}
    objective = case.latteclip(**switches)
    start = [row.detach() for row in reference.class_features(case.clip, case.class_texts)]
    now, epoch_start = start, start
    losses = []
    for step_number in range(4):
        if step_number in (0, 3):
            objective.start_epoch()
            epoch_start = now
        loss = objective.loss(case.batch()).loss
        step = case.reference_step(now, epoch_start, switches)
        torch.testing.assert_close(loss, step.loss, rtol=1e-5, atol=1e-6)
        objective.after_step()
        now = reference.updated(now, step.values)
        # Each step starts from the rounding of the last.
        torch.testing.assert_close(objective.prototypes, torch.stack(now), rtol=1e-4, atol=1e-5)
        losses.append(loss.item())
    assert len(set(losses)) == 4


def test_classes_that_do_not_occur_keep_their_prototype_bit_for_bit():
    case = Case(3, 13, 8)
    objective = case.latteclip(alpha=0.3)
    before = objective.prototypes
    batch = case.batch()
    finetuned = (batch.features @ before.T).argmax(dim=1)
    occurring = {*batch.pseudo_labels.tolist(), *finetuned.tolist()}
    objective.loss(batch)
    objective.after_step()
    kept = [c for c in range(13) if torch.equal(objective.prototypes[c], before[c])]
    assert kept == [c for c in range(13) if c not in occurring]


def test_without_prototypes_the_classifier_is_the_class_texts_of_the_tuned_model():
    case = Case(5, 7, 11)
    objective = case.latteclip(prototypes=False)
    with torch.no_grad():
        case.clip.model.text_projection.mul_(1.0).add_(0.05 * torch.randn(40, WIDTH))
    wanted = [row.detach() for row in reference.class_features(case.clip, case.class_texts)]
    assert_same_rows(objective.classifier(), wanted)


def test_history_tells_scores_drift_and_shares_of_the_mix():
    case = Case(5, 7, 11)
    batch = case.batch()
    objective = case.latteclip(image_description=False)
    outcome = objective.loss(batch)
    logs = outcome.logs
    torch.testing.assert_close(outcome.scores, batch.features @ objective.prototypes.T)
    assert not outcome.scores.requires_grad
    shares = [logs[f"weight_{kind}"].item() for kind in ("class", "image", "group")]
    assert sum(shares) == pytest.approx(1)
    assert shares[1] == 0
    assert logs["prototype_drift"].item() == pytest.approx(0, abs=1e-6)


def test_an_objective_goes_on_from_its_state_with_the_same_draws():
    losses = []
    for restored in (False, True):
        case = Case(5, 7, 11)
        objective = case.latteclip(alpha=0.7)
        objective.loss(case.batch())
        objective.after_step()
        if restored:
            state = {name: tensor.clone() for name, tensor in objective.state().items()}
            objective = case.latteclip(alpha=0.7)
            objective.restore(state)
        losses.append([objective.loss(case.batch()) for _ in range(3)][-1])
    assert losses[0].loss == losses[1].loss
    assert losses[0].logs["prototype_drift"] == losses[1].logs["prototype_drift"] > 0


GROUP_LABELS = torch.tensor([2, 0, 2, 5, 2, 0])


def test_groups_are_drawn_from_their_class_each_equally_often():
    sampler = GroupSampler(GROUP_LABELS, 7, seed=0)
    drawn = sampler.draw(torch.tensor([2, 5, 0] * 1000))
    assert GROUP_LABELS[drawn].tolist() == [2, 5, 0] * 1000
    counts = Counter(drawn.tolist())
    assert all(counts[group] == pytest.approx(1000 / 3, rel=0.15) for group in (0, 2, 4))
    assert all(counts[group] == pytest.approx(500, rel=0.15) for group in (1, 5))


def test_features_of_half_precision_give_losses_and_prototypes_of_float32():
    features = F.normalize(torch.randn(5, 11), dim=1).bfloat16()
    prototypes = F.normalize(torch.randn(7, 11), dim=1)
    assert contrastive(features, features, torch.tensor(3.5)).dtype == torch.float32
    assert update(prototypes, torch.arange(5), features).dtype == torch.float32


def test_equal_best_similarities_leave_exactly_the_floor():
    prototypes = torch.eye(7, 11)
    prototypes[4] = prototypes[2]
    feature = prototypes[2] + 0.1 * prototypes[0]
    assert margins(feature, prototypes).item() == torch.tensor(MARGIN_FLOOR).item()
