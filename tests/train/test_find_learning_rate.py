import json

import pytest
import torch
from support.trainings import Inputs, settings

from latteclip.train import find_learning_rate as stage
from latteclip.train.data import TrainingFiles

RATES = sorted(stage.UPWARDS + stage.DOWNWARDS)
AUTO = dict.fromkeys(["epochs", "batch_size", "warmup_steps", "lr"], "auto")


def of_images(losses):
    """The losses of four images alike, by rate."""
    return {lr: torch.full((4,), float(loss)) for lr, loss in losses.items()}


@pytest.mark.parametrize("best", range(len(RATES)))
def test_the_search_takes_no_more_steps_than_a_training_and_ends_beside_the_best_rate(best):
    losses = of_images({lr: abs(place - best) for place, lr in enumerate(RATES)})
    runs = stage.climb(losses.get)
    assert len(runs) <= stage.MAX_RUNS
    assert stage.chosen(runs) == RATES[best]


def test_of_rates_that_images_cannot_tell_apart_the_highest_is_taken():
    losses = torch.tensor([0.0, 1.0, 0.5, 0.2])
    noise = torch.tensor([0.1, -0.1, 0.1, 0.0])
    runs = {1e-5: losses, 3e-5: losses + noise, 1e-4: torch.ones(4)}
    assert stage.chosen(runs) == 3e-5


def find(folder, n, model):
    """Search on pictures of three classes. The labels of their index are wrong."""
    inputs = Inputs(folder, [i % 3 for i in range(n)])
    output = folder / "learning_rate.json"
    stage.find_learning_rate(
        TrainingFiles(inputs.index, inputs.labels),
        settings("flyp", model, **AUTO),
        str(output),
        device="cpu",
        threads=1,
    )
    return json.loads(output.read_text())


def test_a_rate_is_found_the_same_every_time_without_the_held_out_images(
    tmp_path, monkeypatch, backbones
):
    trained = []
    step = stage.Training.step

    def noted(self, batch, rate):
        trained.extend(batch[0].tolist())
        return step(self, batch, rate)

    monkeypatch.setattr(stage.Training, "step", noted)
    model = backbones["custom_text"]
    found = find(tmp_path, 15, model)["lr"]
    assert found in RATES
    assert len(set(trained)) == 15 - 15 // stage.HELD_OUT_EVERY
    assert found == find(tmp_path, 15, model)["lr"]
