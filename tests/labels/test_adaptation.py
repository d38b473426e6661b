import pytest
import torch
import torch.nn.functional as F
from support.worlds import World, generator

from latteclip.labels.adaptation import adapt, separation
from latteclip.labels.prototypes import (
    FOLDS,
    FREQUENCY_EXPONENT,
    Discriminants,
    Posterior,
    log_densities,
)

N, C, D = 23, 7, 5


def right(world):
    """Share of the images that the adapted classifier classifies rightly."""
    return world.right(world.adapted().argmax(dim=1))


def zero_shot(world):
    return world.right(world.zero_shot().argmax(dim=1))


def unbalanced(world, ratio):
    """The world with class sizes that fall geometrically to 1 / ratio."""
    kept = []
    for c in range(world.n_classes):
        rows = (world.classes == c).nonzero()[:, 0]
        kept.append(
            rows[: max(1, round(len(rows) * ratio ** (-c / (world.n_classes - 1))))]
        )
    rows = torch.cat(kept).sort().values
    world.classes, world.features = world.classes[rows], world.features[rows]
    return world


# --- the mixture ---------------------------------------------------------------------------------


def test_log_densities_are_those_of_the_other_images():
    draw = generator(1)
    x = torch.randn(N, D, generator=draw).double()
    table = torch.randn(N, C, generator=draw).double().softmax(dim=1)
    found = log_densities(x, table, table.T @ x, table.sum(dim=0))
    for i in range(N):
        for c in range(C):
            others = [j for j in range(N) if j != i]
            count = sum(table[j, c] for j in others) + 1
            mean = sum(table[j, c] * x[j] for j in others) / count
            density = -0.5 * (x[i] - mean).square().sum() + 0.5 * x[i].square().sum()
            assert found[i, c].item() == pytest.approx(density.item())


@pytest.mark.parametrize("seed", range(3))
def test_adapted_scores_are_right_more_often(seed):
    world = World.of(seed=seed, noise=0.3)
    assert right(world) > zero_shot(world) + 0.03


@pytest.mark.parametrize("ratio", [20, 50, 100])
@pytest.mark.parametrize("seed", range(3))
def test_unbalanced_classes_lose_nothing(seed, ratio):
    world = unbalanced(World.of(1800, seed=seed), ratio)
    assert right(world) > zero_shot(world) - 0.02


def test_features_that_tell_nothing_lose_nothing():
    """Zero-shot scores are of these images, but the features beside them are noise."""
    world = World.of(400, 20, 64, noise=2.0, text_noise=0.0)
    assert right(world) > zero_shot(world) - 0.01


def test_a_class_without_images_is_named_less_often():
    world = World.of()
    kept = world.classes != 5
    world.classes, world.features = world.classes[kept], world.features[kept]
    named = [(one.argmax(dim=1) == 5).sum() for one in (world.adapted(), world.zero_shot())]
    assert named[0] <= named[1]


@pytest.mark.parametrize(("n", "c"), [(1, 6), (2, 6), (5, 9), (30, 1)])
def test_few_images_and_classes_are_enough(n, c, recwarn):
    head = adapt(World.of(n, c).images()).adapted
    assert all(part.isfinite().all() for part in head)
    assert not recwarn.list


def test_images_that_are_all_alike_keep_their_zero_shot_class():
    feature = F.normalize(torch.rand(1, 24, generator=generator(0)), dim=1)
    world = World.of(1)
    world.features = feature.repeat(50, 1)
    found = world.adapted().argmax(dim=1)
    assert found.tolist() == world.zero_shot().argmax(dim=1).tolist()


# --- trust and bias ------------------------------------------------------------------------------


def test_separation_is_one_without_clusters_and_larger_with_them():
    draw = torch.distributions.Exponential(torch.tensor(1.0))
    torch.manual_seed(0)
    margins = draw.sample((20_000,)).double()
    assert separation(torch.stack([margins, torch.zeros(20_000)], dim=1)) < 1.02
    assert separation(torch.stack([margins / 3 + 3, torch.zeros(20_000)], dim=1)) > 5
    assert separation(torch.ones(9, 3)) == 1


def test_the_bias_of_class_texts_is_subtracted_and_frequencies_are_not():
    balanced, draw = World.of(noise=0.3), generator(2)
    mean = F.normalize(balanced.features.mean(dim=0), dim=0)
    # A bias is the same score for every image.
    balanced.texts = balanced.texts + 0.3 * torch.randn(6, 1, generator=draw) * mean
    often = unbalanced(World.of(3000, noise=0.3, text_noise=0.0), 50)
    kept = [adapt(world.images()).texts.bias for world in (balanced, often)]
    means = [world.images().text_bias for world in (balanced, often)]
    assert not kept[0].any()
    torch.testing.assert_close(kept[1], means[1])


# --- discriminants -------------------------------------------------------------------------------


def test_a_discriminant_of_other_folds_has_no_part_of_the_fold():
    """Changing the posterior of an image changes no score of its own fold."""
    world = World.of(200)
    images = world.images()
    shares, ones = F.one_hot(world.classes, 6).double(), torch.ones(200).double()
    row, fold = 17, torch.arange(17 % FOLDS, 200, FOLDS)
    rest = torch.tensor([i for i in range(200) if i % FOLDS != row % FOLDS])

    def scores(table):
        posterior = Posterior.of(table.__getitem__, 6, ones)
        found = Discriminants(posterior, [images])
        return found.held_out(fold)[0], found.held_out(rest)[0]

    own, others = scores(shares)
    changed = shares.clone()
    changed[row] = shares[row].roll(1)
    own_after, others_after = scores(changed)
    torch.testing.assert_close(own_after, own, atol=1e-9, rtol=1e-9)
    assert (others_after != others).any()


def test_a_discriminant_is_better_than_means_where_features_are_correlated():
    world, draw = World.of(600, 6, 24, noise=0.4), generator(4)
    mix = torch.eye(24) + 2 * torch.randn(24, 2, generator=draw) @ torch.randn(
        2, 24, generator=draw
    )
    world.features = F.normalize(world.features @ mix, dim=1)
    images = world.images()
    ones = torch.ones(600).double()
    posterior = Posterior.of(F.one_hot(world.classes, 6).double().__getitem__, 6, ones)
    found = Discriminants(posterior, [images]).held_out(torch.arange(600))[0]
    centred = F.normalize(world.features - world.features.mean(dim=0), dim=1)
    means = torch.stack([centred[world.classes == c].mean(dim=0) for c in range(6)])
    plain = centred @ F.normalize(means, dim=1).T
    assert world.right(found.argmax(dim=1)) > world.right(plain.argmax(dim=1)) + 0.05


def test_frequencies_count_one_more_image_of_each_class():
    classes = torch.tensor([0, 0, 0, 2])
    table = F.one_hot(classes, 4).double()
    posterior = Posterior.of(table.__getitem__, 4, torch.ones(4).double())
    wanted = torch.tensor([4, 1, 2, 1]).double() / 8
    torch.testing.assert_close(posterior.log_frequencies().exp(), wanted)
    assert 0 < FREQUENCY_EXPONENT < 1
