import pytest
import torch

from latteclip.train.objectives import mixer

K, B, C, D = 3, 5, 7, 11


def margin_in_loops(feature, prototypes):
    scores = [sum(f * p for f, p in zip(feature, row, strict=True)) for row in prototypes]
    scores.sort(reverse=True)
    return scores[0] - scores[1] + 1e-6


def mix_in_loops(features, weights):
    mixed = []
    for image in range(len(features[0])):
        total = sum(weights[kind][image] for kind in range(len(features)))
        mixed.append(
            [
                sum(
                    weights[kind][image] * features[kind][image][d] for kind in range(len(features))
                )
                / total
                for d in range(len(features[0][0]))
            ]
        )
    return mixed


def test_margins_equal_the_loops():
    torch.manual_seed(0)
    features, prototypes = torch.randn(K, B, D), torch.randn(C, D)
    wanted = [
        [margin_in_loops(feature, prototypes.tolist()) for feature in kind]
        for kind in features.tolist()
    ]
    torch.testing.assert_close(
        mixer.margins(features, prototypes), torch.tensor(wanted), rtol=1e-5, atol=1e-5
    )


def test_equal_best_similarities_leave_exactly_the_floor():
    prototypes = torch.eye(C, D)
    prototypes[4] = prototypes[2]
    feature = prototypes[2] + 0.1 * prototypes[0]
    assert mixer.margins(feature, prototypes).item() == torch.tensor(mixer.MARGIN_FLOOR).item()


def test_margins_with_two_classes():
    prototypes = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    weight = mixer.margins(torch.tensor([0.25, 0.75, 0.5]), prototypes)
    assert weight.item() == pytest.approx(0.5 + 1e-6)


def test_margins_take_no_gradient_and_stay_float32():
    features = torch.randn(B, D, requires_grad=True)
    weights = mixer.margins(features, torch.randn(C, D))
    assert not weights.requires_grad
    assert weights.dtype == torch.float32


def test_mix_equals_the_loops():
    torch.manual_seed(1)
    features, weights = torch.randn(K, B, D), torch.rand(K, B)
    wanted = mix_in_loops(features.tolist(), weights.tolist())
    torch.testing.assert_close(mixer.mix(features, weights), torch.tensor(wanted))


def test_a_weight_scales_its_image_and_no_other():
    # Where B == D, weights without an axis of their own would scale columns of the features.
    features, weights = torch.randn(K, D, D), torch.rand(K, D)
    before = mixer.mix(features, weights)
    weights[1, 3] += 1
    after = mixer.mix(features, weights)
    changed = (before != after).any(dim=1)
    assert changed.tolist() == [image == 3 for image in range(D)]


def test_a_text_of_weight_zero_does_not_count():
    features = torch.randn(K, B, D)
    weights = torch.tensor([[0.5] * B, [0.0] * B, [1.5] * B])
    without = mixer.mix(features[[0, 2]], weights[[0, 2]])
    torch.testing.assert_close(mixer.mix(features, weights), without)


def test_gradient_of_a_mix_is_the_share_of_each_text():
    features = torch.randn(K, B, D, requires_grad=True)
    weights = torch.rand(K, B)
    mixer.mix(features, weights).sum().backward()
    shares = weights / weights.sum(dim=0)
    torch.testing.assert_close(features.grad, shares[:, :, None].expand(K, B, D))
