import math

import pytest
import torch

from latteclip.core.errors import UserError
from latteclip.train.step import check_finite, parameter_groups


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


def test_frozen_parameters_are_not_trained():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))
    model[0].requires_grad_(False)
    trained = [p for group in parameter_groups(model, 0.2) for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model[1].parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value):
    rows = [{"step": step, "epoch": 4, "loss": 1.0} for step in range(7, 11)]
    check_finite(rows)
    rows[2]["loss"] = value
    with pytest.raises(UserError, match=r"at step 9 \(epoch 5\)"):
        check_finite(rows)
