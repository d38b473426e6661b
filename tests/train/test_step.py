import math

import pytest
import torch
from support.objectives import SHAPES, Case
from support.on_device import OnDevice, moved, no_waiting, send

from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order
from latteclip.train.objectives.flyp import Flyp
from latteclip.train.settings import Recipe
from latteclip.train.step import Training, adamw, collapse, parameter_groups, prediction_entropy


def test_only_matrices_decay(demo_clip):
    groups = parameter_groups(demo_clip.model, 0.2)
    named = {id(p): name for name, p in demo_clip.model.named_parameters()}
    decayed, spared = (
        {named[id(p)] for p in group["params"]}
        for group in sorted(groups, key=lambda group: -group["weight_decay"])
    )
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.2]
    assert decayed | spared == set(named.values())
    assert not decayed & spared
    assert {"logit_scale", "ln_final.weight", "ln_final.bias", "visual.ln_pre.weight"} <= spared
    assert {"text_projection", "token_embedding.weight", "visual.conv1.weight"} <= decayed
    assert not any(name.endswith(".bias") for name in decayed)


def a_training(case, make_objective):
    """A training of the case's model on a device that notices when it is waited for."""
    settings = Recipe(
        epochs=1,
        warmup_steps=1,
        batch_size=len(case.index),
        lr=1e-3,
        beta1=0.9,
        beta2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        batch_norm="frozen",
        steps_multiple_of=1,
    )
    with ending_in_order("") as signals:
        return Training(
            case.clip,
            make_objective(case),
            adamw(case.clip.model, settings),
            torch.zeros(len(case.classnames), dtype=torch.long).as_subclass(OnDevice),
            signals,
            settings.batch_norm,
        )


def steps(training, case, n=2):
    labels = case.labels[case.index]
    for number in range(n):
        logs = training.step(case.index, labels, send(case.images, None), 1e-3)
        training.record({"step": number, "epoch": 0, "lr": 1e-3, **logs})


OBJECTIVES = {
    "flyp": lambda case: Flyp(case.bank, case.texts),
    "latteclip": lambda case: case.latteclip(),
    "no mixer": lambda case: case.latteclip(mixer_weights=False),
    "epoch": lambda case: case.latteclip(mixer_prototypes="epoch", group_description=False),
    "no prototypes": lambda case: case.latteclip(prototypes=False),
}


def gradients(case, objective):
    """The loss of a batch and the gradients of all parameters."""
    case.clip.model.zero_grad()
    outcome = OBJECTIVES[objective](case).loss(case.batch())
    outcome.loss.backward()
    named = case.clip.model.named_parameters()
    return outcome.loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("shape", "size"), [(SHAPES[0], 2), (SHAPES[2], 1)])
def test_micro_batches_give_every_objective_its_gradients(objective, shape, size):
    case = Case(*shape)
    loss, whole = gradients(case, objective)
    case.clip.micro_batch = size
    loss_of_parts, parts = gradients(case, objective)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    assert parts.keys() == whole.keys()
    largest = max(gradient.abs().max() for gradient in whole.values()).item()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)


@pytest.fixture
def waits_are_noticed(monkeypatch):
    monkeypatch.setattr(devices, "send", send)


@pytest.mark.parametrize(
    ("objective", "micro_batch"), [*((name, None) for name in OBJECTIVES), ("latteclip", 2)]
)
def test_a_step_never_waits_for_the_device(objective, micro_batch, waits_are_noticed):
    case = Case(5, 7, 11)
    moved(case.clip.model)
    training = a_training(case, OBJECTIVES[objective])
    case.clip.micro_batch = micro_batch
    before = training.logit_scale.item()
    with no_waiting():
        steps(training, case)
        with pytest.raises(AssertionError, match="item waits for the device"):
            training._pending[0]["loss"].item()
    assert isinstance(training.predicted, OnDevice)
    assert training.logit_scale.item() != before


@pytest.mark.parametrize("shape", [(5, 7, 11), (3, 13, 8)])
def test_rows_become_numbers_together_with_what_they_share(shape):
    case = Case(*shape)
    training = a_training(case, OBJECTIVES["latteclip"])
    steps(training, case, n=3)
    wanted = [row["loss"].item() for row in training._pending]
    training.flush_metrics(lambda: {"images_per_second": 7.0})
    assert [row["loss"] for row in training.history] == wanted
    assert [row["step"] for row in training.history] == [0, 1, 2]
    assert all(row["images_per_second"] == 7.0 for row in training.history)
    values = [value for row in training.history for value in row.values()]
    assert all(isinstance(value, (int, float)) for value in values)
    assert training.predicted.sum() == 3 * shape[0]


def test_a_loss_that_is_not_finite_is_found_when_metrics_are_flushed():
    case = Case(5, 7, 11)
    training = a_training(case, OBJECTIVES["flyp"])
    steps_of = [{"step": n, "epoch": 0, "loss": torch.tensor(1.0)} for n in range(4)]
    steps_of[2]["loss"] = torch.tensor(math.nan)
    for row in steps_of:
        training.record(row)
    with pytest.raises(UserError, match=r"finetune\.lr"):
        training.flush_metrics(dict)
    assert [row["step"] for row in training.history] == [0, 1]


def test_prediction_entropy_equals_the_loop():
    torch.manual_seed(0)
    scores = torch.randn(5, 7)
    found = prediction_entropy(scores, torch.tensor(3.0))
    entropies, mean = [], [0.0] * 7
    for row in scores.tolist():
        weights = [math.exp(3 * score) for score in row]
        shares = [w / sum(weights) for w in weights]
        entropies.append(-sum(p * math.log(p) for p in shares))
        mean = [m + p / 5 for m, p in zip(mean, shares, strict=True)]
    assert found["entropy"].item() == pytest.approx(sum(entropies) / 5, rel=1e-5)
    balance = -sum(p * math.log(p) for p in mean) / math.log(7)
    assert found["class_balance"].item() == pytest.approx(balance, rel=1e-5)


@pytest.mark.parametrize(
    ("counts", "agreement", "collapsed"),
    [
        ([3, 1, 0, 0, 2], 0.8, False),
        ([3, 0, 0, 0, 2], 0.8, True),
        ([9, 9, 9, 9, 9], 0.2, True),
        ([9, 9, 9, 9, 9], 0.25, False),
    ],
)
def test_collapse_is_few_classes_or_little_agreement(counts, agreement, collapsed):
    found = collapse(torch.tensor(counts), agreement)
    assert bool(found) == collapsed
