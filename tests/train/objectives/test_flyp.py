import pytest
import torch
from support import reference
from support.objectives import SHAPES, Case, assert_same_rows
from support.tiny import WIDTH

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


def test_scores_of_flyp_are_those_of_the_class_texts_at_the_epochs_start():
    case = Case(5, 7, 11)
    objective = Flyp(case.texts)
    before = objective.classifier()
    with torch.no_grad():
        case.clip.model.text_projection.add_(0.05 * torch.randn(40, WIDTH))
    batch = case.batch()
    torch.testing.assert_close(objective.loss(batch)[1], batch.features.detach() @ before.T)
    objective.start_epoch()
    now = objective.loss(batch)[1]
    torch.testing.assert_close(now, batch.features.detach() @ objective.classifier().T)
    assert not torch.allclose(now, batch.features @ before.T)
