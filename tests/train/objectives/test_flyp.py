import pytest
import torch
from support import reference
from support.objectives import SHAPES, Case, assert_same_rows

from latteclip.train.objectives.flyp import Flyp


@pytest.mark.parametrize("shape", SHAPES)
def test_flyp_equals_the_reference(shape):
    case = Case(*shape, seed=sum(shape))
    objective = Flyp(case.texts)
    loss = objective.loss(case.batch())[0]
    wanted = reference.flyp(
        case.clip, case.images, case.labels[case.index].tolist(), case.reference_texts()
    )
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    case.assert_same_gradients(loss, wanted)
    assert_same_rows(
        objective.classifier(),
        [row.detach() for row in reference.class_features(case.clip, case.class_texts)],
    )
