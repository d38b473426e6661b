"""The steps of a training."""

from functools import partial

import pytest
import torch
import yaml
from support import reference
from support.backbones import limit_memory
from support.objectives import SHAPES, Case
from support.tiny import FINETUNE, ROOT

from latteclip.clip import model as clips
from latteclip.config import layers
from latteclip.config.keys import FinetuneSection
from latteclip.config.resolve import Run
from latteclip.core.errors import UserError
from latteclip.train.objectives.flyp import Flyp
from latteclip.train.settings import Recipe, recipe_for
from latteclip.train.training import Training

OBJECTIVES = {
    "flyp": lambda case: Flyp(case.texts),
    "latteclip": lambda case: case.latteclip(),
    "no mixer": lambda case: case.latteclip(mixer_weights=False),
    "epoch": lambda case: case.latteclip(mixer_prototypes="epoch", group_description=False),
    "no prototypes": lambda case: case.latteclip(prototypes=False),
}


def take(case, objective, n=2):
    """A training of the case's model after n steps on its batch."""
    recipe = Recipe(**FINETUNE | {"batch_size": len(case.index)})
    training = Training(OBJECTIVES[objective](case), recipe)
    batch = case.index, case.labels[case.index], case.images
    assert list(training.steps(iter([batch] * n), n, n)) == list(range(1, n + 1))
    training.flush_metrics()
    return training


def gradients_of(case, objective):
    """The loss of a batch and the gradients of all parameters."""
    case.clip.model.zero_grad()
    method = OBJECTIVES[objective](case)
    method.start_epoch()
    loss, _ = method.loss(case.batch())
    loss.backward()
    named = case.clip.model.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("shape", "size"), [(SHAPES[0], 2), (SHAPES[2], 1)])
def test_micro_batches_give_every_objective_its_gradients(
    objective, shape, size, monkeypatch
):
    """In float64, also where the program computes in float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    case = Case(*shape)
    case.clip.model.double()
    case.images = case.images.double()
    loss, whole = gradients_of(case, objective)
    case.clip.micro_batch = size
    loss_of_parts, parts = gradients_of(case, objective)
    assert loss_of_parts == pytest.approx(loss, rel=1e-12)
    assert parts.keys() == whole.keys()
    largest = max(gradient.abs().max() for gradient in whole.values()).item()
    for name, gradient in whole.items():
        torch.testing.assert_close(
            parts[name], gradient, rtol=1e-12, atol=1e-12 * largest, msg=name
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_waits_for_no_result_of_a_device(objective):
    """On the meta device, which has no results: to ask for one is an error."""
    case = Case(*SHAPES[0])
    training = take(case, objective)
    method, meta = training.objective, torch.device("meta")
    case.clip.model.to(meta)
    case.clip.device = meta
    method.restore(method.state())
    training.adamw = torch.optim.AdamW(case.clip.model.parameters(), foreach=True)
    batch = case.index, case.labels[case.index], case.images.to(meta)
    training.predicted = training.predicted.to(meta)
    assert training.step(batch, 1e-3)["loss"].device == meta


@pytest.mark.parametrize(
    ("classes", "rows", "chosen"), [(4, 6, None), (4, 5, 3), (4, 1, 1), (9, 6, 3)]
)
def test_a_step_halves_its_micro_batches_until_they_fit(classes, rows, chosen, monkeypatch):
    """With nine classes the images fit at first and the texts do not."""
    case = Case(6, classes, 9)
    limit_memory(monkeypatch, case.clip, rows)
    training = take(case, "latteclip")
    assert case.clip.micro_batch == chosen
    other = Case(6, classes, 9)
    other.clip.micro_batch = chosen
    from_the_start = take(other, "latteclip")  # draws the same groups
    assert torch.equal(training.objective.prototypes, from_the_start.objective.prototypes)


def test_one_image_that_does_not_fit_is_one_sentence(monkeypatch):
    case = Case(6, 4, 9)
    limit_memory(monkeypatch, case.clip, 0)
    with pytest.raises(UserError, match=r"clip\.model"):
        take(case, "latteclip")


@pytest.mark.parametrize("name", ["study", "ablations"])
def test_trainings_of_the_paper_compute_in_fp16_as_the_authors(name):
    given = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    run = Run(layers.defaults(project=None), {"dataset": "all", **given})
    assert {dataset.keys.clip.precision for dataset in run.datasets} == {"fp16"}


@pytest.mark.parametrize(("n", "warmup"), [(12, 0), (60, 3), (600, 30), (6000, 50)])
def test_a_warm_up_by_itself_is_a_tenth_of_the_steps_and_fifty_at_most(n, warmup):
    """Of 6, 30, 300 and 3,000 steps."""
    section = FinetuneSection(epochs=2, batch_size=4, warmup_steps="auto", lr=1e-5)
    assert recipe_for(section, n).warmup_steps == warmup


@pytest.mark.parametrize("objective", ["flyp", "latteclip"])
def test_a_training_in_fp16_has_almost_the_losses_of_float32(objective, monkeypatch):
    """In fp16 as CUDA computes it, here on a CPU."""
    wanted = take(Case(6, 4, 9), objective, 4)
    half = partial(torch.autocast, "cpu", torch.float16)
    monkeypatch.setattr(clips.Clip, "autocast", lambda _: half())
    scaler = torch.amp.GradScaler("cpu")
    monkeypatch.setattr(clips.Clip, "loss_scaler", lambda _: scaler)
    found = take(Case(6, 4, 9), objective, 4)
    assert found.scaler.get_scale() > 1
    losses = [[row["loss"] for row in each.history] for each in (wanted, found)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.fixture
def close(request, monkeypatch):
    """Compute in float32, or in float64 whatever is cast to float32, and compare with that."""
    before = torch.get_default_dtype()
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    tolerance = {"float32": 1e-4, "float64": 1e-9}[request.param]
    yield partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    torch.set_default_dtype(before)


STEPS, PER_EPOCH, WARMUP, LR = 5, 3, 2, 2e-3


@pytest.mark.parametrize(
    ("switches", "micro_batch", "log_scale", "close"),
    [
        (None, None, 4.65, "float64"),
        (None, 3, 1e-4, "float32"),
        ({}, None, 1e-4, "float64"),
        ({"alpha": 0.3}, 2, 4.65, "float64"),
        ({"alpha": 0.3}, None, 3.0, "float32"),
        ({"alpha": 0.7, "mixer_prototypes": "epoch"}, None, 3.0, "float64"),
        ({"prototypes": False}, None, 3.0, "float64"),
    ],
    indirect=["close"],
    ids=str,
)
def test_a_training_equals_the_reference(switches, micro_batch, log_scale, close):
    """Losses, weights, prototypes and predictions, with micro-batches too, and at bounds of s."""
    ours, theirs = (Case(5, 4, 9) for _ in range(2))
    ours.clip.micro_batch = micro_batch
    flyp = switches is None
    training = Training(
        Flyp(ours.texts) if flyp else ours.latteclip(**switches),
        Recipe(lr=LR, epochs=2, warmup_steps=WARMUP, batch_size=5),
    )
    for case in (ours, theirs):
        case.clip.model.logit_scale.data.fill_(log_scale)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(9, generator=generator)[:5] for _ in range(STEPS)]
    batches = ((each, ours.labels[each], ours.all_images[each]) for each in rows)
    adamw = reference.AdamW(theirs.clip.model)
    now = theirs.class_rows()
    history, predicted = [], set()
    for done in training.steps(batches, STEPS, PER_EPOCH):
        theirs.index = rows[done - 1]
        if (done - 1) % PER_EPOCH == 0:
            epoch_start = theirs.class_rows() if flyp else now
            predicted.clear()
        step = theirs.reference_step(now, epoch_start, switches)
        rate = reference.learning_rate(done - 1, STEPS, WARMUP, LR)
        adamw.step(theirs.gradients(step.loss), rate)
        now = reference.updated(now, step.values)
        predicted.update(step.finetuned)
        agrees = torch.tensor(step.finetuned) == theirs.labels[theirs.index]
        history.append([rate, step.loss.item(), agrees.double().mean().item()])
    training.flush_metrics()
    rows = [[row[key] for key in ("lr", "loss", "agreement")] for row in training.history]
    close(torch.tensor(rows), torch.tensor(history))
    assert training.predicted.nonzero().flatten().tolist() == sorted(predicted)
    weights = theirs.clip.model.state_dict()
    for name, weight in ours.clip.model.state_dict().items():
        close(weight, weights[name], msg=lambda message, name=name: name + message)
    last = theirs.class_rows() if flyp or "prototypes" in switches else now
    close(training.objective.classifier(), torch.stack(last))
