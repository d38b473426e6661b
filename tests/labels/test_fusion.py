import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.worlds import ALL, SCALE, World, captions_of, generator, on_disk, table_votes
from torch.utils._python_dispatch import TorchDispatchMode

from latteclip.labels import adaptation, fusion, label_sources, permutation_test, prototypes
from latteclip.labels.fusion import FusionParameters, LabelModel, fuse
from latteclip.labels.label_sources import (
    ClipFeatures,
    LabelledRows,
    Votes,
    caption_votes,
    class_score_votes,
    label_votes,
    whiten,
)
from latteclip.labels.likelihood import fit_mixture, fit_weights
from latteclip.labels.permutation_test import PermutationTest, corroborate
from latteclip.labels.prototypes import KEPT, SHARPNESS, Posterior, Prototypes

N, C, D = 23, 7, 5


def shares(n, c, seed):
    return (2 * torch.randn(n, c, generator=generator(seed)).double()).softmax(dim=1)


def posterior_of(table):
    return Posterior.of(table.__getitem__, table.shape[1], torch.ones(len(table)).double())


# --- prototypes ----------------------------------------------------------------------------------


def test_a_row_has_no_part_in_the_prototypes_it_is_compared_with():
    x = torch.randn(N, D, generator=generator(1)).double()
    table = shares(N, C, 2)
    found = prototypes.own_part_left_out(x, table, table.T @ x)
    for i in range(N):
        for c in range(C):
            prototype = sum(table[j, c] * x[j] for j in range(N) if j != i)
            assert found[i, c].item() == pytest.approx(
                (x[i] @ prototype / prototype.norm()).item()
            )


@pytest.mark.parametrize("c", [1, KEPT + 5])
def test_a_posterior_keeps_the_largest_probabilities(c, monkeypatch):
    monkeypatch.setattr(label_sources, "ROWS", 9)
    table = shares(N, c, 3)
    kept = posterior_of(table)
    threshold = table.sort(dim=1, descending=True).values[:, :KEPT][:, -1:]
    wanted = torch.where(table >= threshold, table, 0.0)
    wanted /= wanted.sum(dim=1, keepdim=True)
    torch.testing.assert_close(kept.table(ALL), wanted, atol=1e-7, rtol=1e-6)
    assert kept.classes.shape == (N, min(c, KEPT))
    rows = torch.tensor([20, 3])
    torch.testing.assert_close(kept.table(rows), wanted[rows], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_head_of_given_labels_predicts_them_whatever_the_class_texts_are(shift):
    world = World.of(noise=0.2)
    labels = (world.classes + shift) % world.n_classes
    images = world.images()
    fused = fuse(images, label_votes(labels, world.n_classes))
    head = images.classifier(fused.head, SCALE)
    assert world.right((head.scores(world.features).argmax(dim=1) - shift) % 6) > 0.95
    assert fused.parameters.test.significant


# --- permutation test ----------------------------------------------------------------------------


def corroborated(world, table):
    """The permutation test of a table [n, C] of votes of the world's first n images."""
    return corroborate(world.images(), table_votes(table), torch.arange(len(table)))


def statistics_in_loops(features, zero_shot, votes):
    mean = votes.mean(dim=0)
    alike = sum(
        ((features[i] @ features[j]) * ((votes[i] - mean) @ (votes[j] - mean))).item()
        for i, j in itertools.permutations(range(len(votes)), 2)
    )
    return alike, sum((zero_shot[i] @ (votes[i] - mean)).item() for i in range(len(votes)))


@pytest.mark.parametrize("gather", [0, 1000], ids=["kernels", "votes"])
def test_the_permutation_test_is_that_of_its_definition(gather, monkeypatch):
    monkeypatch.setattr(permutation_test, "GATHER", gather)
    monkeypatch.setattr(permutation_test, "N_PERMUTATIONS", 49)
    world = World.of(13, 4, 6)
    votes = shares(13, 4, 1)
    features, zero_shot = world.images().centred.double(), world.zero_shot().softmax(dim=1)
    found = corroborated(world, votes)
    draw = generator(permutation_test.SEED)
    orders = [torch.randperm(13, generator=draw) for _ in range(49)]
    own = torch.tensor(statistics_in_loops(features, zero_shot, votes))
    drawn = torch.tensor(
        [statistics_in_loops(features, zero_shot, votes[o]) for o in orders]
    )
    standard = (own - drawn.mean(dim=0)) / drawn.std(dim=0)
    others = ((drawn - drawn.mean(dim=0)) / drawn.std(dim=0)).sum(dim=1)
    assert found.images == pytest.approx(standard[0].item(), rel=1e-4)
    assert found.zero_shot == pytest.approx(standard[1].item(), rel=1e-4)
    assert found.p_value == pytest.approx(
        (1 + (others >= standard.sum()).sum().item()) / 50
    )


def test_many_classes_are_tested_with_fewer_images(monkeypatch):
    world = World.of(900, 20, 24)
    asked = []

    def probabilities(rows):
        asked.append(len(rows))
        return F.one_hot(world.classes[rows], 20).double()

    votes = Votes(torch.ones(900, dtype=torch.bool), probabilities)
    for name, value in {"MAX_IMAGES": 800, "MIN_IMAGES": 90}.items():
        monkeypatch.setattr(permutation_test, name, value)
    for images in (450, 45):
        monkeypatch.setattr(permutation_test, "MAX_PRODUCTS", images * 20 * 24)
        assert corroborate(world.images(), votes, torch.arange(900)).significant
    assert asked == [450, 90]


@pytest.mark.parametrize("seed", range(3))
def test_options_chosen_by_zero_shot_scores_corroborate_no_answer(seed):
    world = World.of(300, 20, seed=seed)
    options = (world.features @ world.texts.T).topk(5).indices
    draw = generator(10 + seed)
    answers = {
        "none": torch.zeros(300, 5),
        "one for each class": (8 * torch.randn(20, generator=draw))[options],
        "one drawn": 3 * torch.randn(300, 5, generator=draw),
    }

    def significant(scores):
        votes = class_score_votes(options, scores, 20)
        return corroborate(world.images(), votes, torch.arange(300)).significant

    assert not any(significant(answer) for answer in answers.values())
    assert significant(6.0 * (options == world.classes[:, None]) + answers["one drawn"])


# --- likelihood ----------------------------------------------------------------------------------


def mixture(predictors, votes, weights, share):
    """Mean log-likelihood of votes under u softmax(sum of weighted predictors) + (1 - u) mean."""
    predicted = sum(
        w * table for w, table in zip(weights, predictors, strict=True)
    ).softmax(dim=1)
    mixed = share * predicted + (1 - share) * votes.mean(dim=0)
    return (votes * mixed.log()).sum(dim=1).mean().item()


@pytest.mark.parametrize(("seed", "right"), [(0, 0.9), (1, 0.5), (2, 0.5)])
def test_no_weights_and_share_of_a_grid_are_likelier(seed, right):
    world = World.of(seed=seed)
    votes = world.captions(right=right, seed=seed).probabilities(ALL)
    other = 2 * torch.randn(900, 6, generator=generator(seed)) + 2 * F.one_hot(
        world.classes, 6
    )
    predictors = [world.calibrated(), other.double()]
    weights, share = fit_mixture(predictors, votes, votes.mean(dim=0))
    assert (weights >= 0).all()
    assert 0 < share < 1
    found = mixture(predictors, votes, weights.tolist(), share)
    steps = [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    rates = [number / 20 for number in range(20)]
    best = max(
        mixture(predictors, votes, (a, b), u) for a in steps for b in steps for u in rates
    )
    assert found > best - 1e-3  # what the ridge may cost


@pytest.mark.parametrize("seed", range(3))
def test_a_predictor_that_contradicts_the_votes_gets_no_weight(seed):
    world = World.of(seed=seed)
    votes = world.vote_table(seed=seed)
    noise = 1.5 * torch.randn(900, 6, generator=generator(seed))
    opposite = world.calibrated() - 6 * F.one_hot(world.classes, 6) + noise
    overall = votes.mean(dim=0)
    weights, share = fit_mixture([world.calibrated(), opposite], votes, overall)
    alone, share_alone = fit_mixture([world.calibrated()], votes, overall)
    assert weights.tolist() == pytest.approx([alone.item(), 0], rel=1e-4)
    assert share == pytest.approx(share_alone, rel=1e-4)
    weights = fit_weights([world.calibrated(), opposite], votes)
    alone = fit_weights([world.calibrated()], votes)
    assert weights.tolist() == pytest.approx([alone.item(), 0], rel=1e-4)


def test_gains_are_nats_over_the_mean_vote():
    world = World.of()
    votes = world.vote_table()
    predictors = [world.calibrated(), torch.zeros(900, 6).double()]
    found, _ = fusion.gains(predictors, votes, [])
    weights, share = fit_mixture(predictors[:1], votes, votes.mean(dim=0))
    blind = (votes * votes.mean(dim=0).log()).sum(dim=1).mean().item()
    wanted = mixture(predictors[:1], votes, weights, share) - blind
    assert wanted > 0.1
    assert found["zero_shot"] == pytest.approx(wanted, abs=1e-6)
    assert found["both"] == pytest.approx(wanted, abs=1e-3)
    # Uniform probabilities can gain nothing over the mean.
    assert found["images"] == pytest.approx(0, abs=1e-3)


def test_the_posterior_is_that_of_its_formula():
    world = World.of(40)
    images, votes, other = world.images(), world.captions(silent=0.2), world.other_model()
    own = shares(40, 6, 8)
    confusion, second = shares(6, 6, 4), shares(6, 6, 5)
    test = PermutationTest(9, 9, 0.001)
    parameters = FusionParameters(test, confusion, second, 0.7, (2.0, 1.5), 0.5, 0.9, 0.7)
    assert parameters.independence == pytest.approx((1 - 0.9**8 / 2) * (0.7 / 0.9**2) ** 2)
    model = LabelModel(images, votes)
    model.parameters = parameters
    model.last = Prototypes(images, posterior_of(own), [other], votes.text_features)
    found = model.log_posterior(ALL).exp()
    x, texts, cast = (
        images.centred.double(),
        votes.text_features(ALL),
        votes.probabilities(ALL),
    )
    y = other.centred.double()
    z = world.zero_shot().log_softmax(dim=1)
    frequencies = (own.sum(dim=0) + 1) / (40 + 6)

    def cosine(rows, i, c):
        """Product of a row with the prototype of the others."""
        prototype = sum(own[j, c] * rows[j] for j in range(40) if j != i)
        return (rows[i] @ prototype / prototype.norm()).item()

    for i in range(40):
        joint = []
        for c in range(6):
            cosines = 2 * cosine(x, i, c) + 1.5 * cosine(y, i, c)
            q = (
                0.7 * z[i, c].item()
                + SHARPNESS * cosines
                + 0.5 * frequencies[c].log().item()
            )
            if not votes.has[i]:
                joint.append(math.exp(q))
                continue
            first = int(cast[i].argmax())
            others = sum(
                3 * cast[i, k].item() * second[c, k].log().item()
                for k in range(6)
                if k != first
            )
            text = 0.5 * SHARPNESS * cosine(texts, i, c)
            vote = confusion[c, first].item() * math.exp(others)
            joint.append(math.exp(parameters.independence * q) * vote * math.exp(text))
        assert found[i].tolist() == pytest.approx([p / sum(joint) for p in joint], abs=1e-4)


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_sources_that_err_independently_are_better_together(seed):
    world = World.of(seed=seed)
    votes = world.votes(seed)
    fused = fuse(world.images(), votes)
    alone = [votes.probabilities(ALL).argmax(1), *fused.individual_labels.values()]
    assert world.right(fused.labels) > max(map(world.right, alone)) + 0.02
    assert ((fused.confidence > 1 / 6) & (fused.confidence <= 1)).all()
    order = fused.confidence.argsort(descending=True)
    right = (fused.labels == world.classes)[order].double()
    assert right[:450].mean() > right[450:].mean() + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_votes_that_copy_the_mistakes_of_zero_shot_scores_lose_nothing(seed):
    world = World.of(seed=seed)
    labels = world.calibrated().argmax(1)
    fused = fuse(world.images(), table_votes(0.9 * F.one_hot(labels, 6) + 0.1 / 6))
    assert fused.parameters.explained_share > 0.85
    assert world.right(fused.labels) > world.right(labels) - 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_of_most_images_keeps_them(seed):
    # Without a way back, small classes capture a third of its images from round to round.
    draw = generator(seed)
    n, c, d = 300, 6, 128
    classes = torch.repeat_interleave(torch.arange(c), torch.tensor([n - 60] + [12] * 5))
    centres = F.normalize(torch.randn(c, d, generator=draw), dim=1)
    noises = 0.12 * torch.randn(n, d, generator=draw)
    features = F.normalize(centres[classes] + noises + 0.5 / d**0.5, dim=1)
    world = World(classes, features, torch.zeros(c, d))
    votes = label_votes(classes.clone(), c)
    result = fuse(world.images(), votes)
    assert (result.labels == classes).double().mean() > 0.9


def test_images_without_captions_get_labels_from_the_others():
    world = World.of()
    votes = world.captions(right=0.9, silent=0.5)
    fused = fuse(world.images(), votes)
    silent = ~votes.has
    assert 400 < silent.sum() < 500
    right = fused.labels == world.classes
    zero_shot = world.calibrated().argmax(1) == world.classes
    assert right[silent].double().mean() > zero_shot[silent].double().mean() + 0.1
    assert right[votes.has].double().mean() > 0.85


def test_the_head_predicts_the_class_of_each_image_without_its_own_part():
    world = World.of(210, noise=1.0)
    votes = world.votes()
    fused = fuse(world.images(), votes)
    with_own_part = (
        world.images().classifier(fused.head, SCALE).scores(world.features).argmax(1)
    )
    differs = with_own_part != fused.predicted
    assert differs.any()
    table = votes.probabilities(differs)
    more = table.gather(1, with_own_part[differs, None]).mean()
    # An image votes for itself.
    assert more > table.gather(1, fused.predicted[differs, None]).mean()


def test_a_vote_for_a_class_that_votes_name_too_often_weighs_less():
    """Votes name the class 0 for half of the images of every class."""
    world = World.of()
    often = torch.rand(900, generator=generator(5)) < 0.5
    table = world.vote_table()
    table[often] = F.one_hot(torch.zeros(int(often.sum()), dtype=torch.long), 6).double()
    parameters = fuse(world.images(), table_votes(table)).parameters
    one, other = parameters.classes(torch.eye(6, dtype=torch.float64))[:2]
    assert parameters.test.significant
    assert one[0] < other[1] - 0.1
    torch.testing.assert_close(one.sum().item(), 1.0)


# --- other image encoders -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_image_model_that_sees_more_makes_labels_and_classifiers_better(seed):
    world = World.of(seed=seed, noise=1.0)
    images, votes, other = (
        world.images(),
        world.captions(right=0.6, seed=seed),
        world.other_model(),
    )
    alone, fused = fuse(images, votes), fuse(images, votes, [other])
    assert fused.parameters.images[1] > fused.parameters.images[0]
    assert fused.gains["encoder_0"] > fused.gains["images"]
    assert world.right(fused.labels) > world.right(alone.labels) + 0.05
    assert world.right(fused.joint_predicted) > world.right(alone.predicted) + 0.05
    scores = fused.joint_heads[0].logits(images.centred.double())
    scores += fused.joint_heads[1].logits(other.centred.double())
    assert world.right(scores.argmax(dim=1)) > world.right(alone.predicted) + 0.05


USELESS = {
    "noise": lambda x, draw: torch.randn(len(x), 32, generator=draw),
    "constant": lambda x, draw: torch.ones(len(x), 8),
    "CLIP again": lambda x, draw: x.clone(),
    "projection of CLIP": lambda x, draw: x @ torch.randn(x.shape[1], 4, generator=draw),
}


@pytest.mark.parametrize("kind", USELESS)
def test_an_image_model_that_sees_no_more_changes_few_labels(kind):
    world = World.of()
    images, votes = world.images(), world.captions(right=0.6)
    other = whiten(USELESS[kind](world.features, generator(1)))
    alone, fused = fuse(images, votes), fuse(images, votes, [other])
    assert (fused.labels == alone.labels).double().mean() > 0.99
    assert abs(world.right(fused.labels) - world.right(alone.labels)) < 0.005
    if kind != "CLIP again":
        assert fused.parameters.images[1] < 0.1


def test_beside_a_useless_model_a_good_one_counts_as_if_alone():
    world = World.of(noise=1.0)
    images, votes, good = world.images(), world.captions(right=0.6), world.other_model()
    useless = whiten(torch.randn(900, 32, generator=generator(1)))
    alone, both = fuse(images, votes, [good]), fuse(images, votes, [useless, good])
    assert both.parameters.images == (
        alone.parameters.images[0],
        0,
        alone.parameters.images[1],
    )
    assert both.labels.tolist() == alone.labels.tolist()
    assert both.joint_predicted.tolist() == alone.joint_predicted.tolist()
    assert both.gains["encoder_1"] == alone.gains["encoder_0"]
    assert not both.joint_heads[1].weights.any()
    assert torch.equal(both.joint_heads[2].weights, alone.joint_heads[1].weights)


def test_without_corroboration_other_models_have_no_weight():
    world = World.of()
    table = world.vote_table().roll(7, dims=0)
    fused = fuse(world.images(), table_votes(table), [world.other_model()])
    assert fused.joint_heads[1].weights.shape == (6, 16)
    assert not fused.joint_heads[1].weights.any()
    assert fused.labels.tolist() == world.zero_shot().argmax(1).tolist()


# --- votes without information -------------------------------------------------------------------


def uniform_scores(world):
    n, c = len(world.classes), world.n_classes
    options = torch.stack([torch.randperm(c, generator=generator(0)) for _ in range(n)])
    return class_score_votes(
        options, -torch.rand(n, 1, generator=generator(1)).expand(n, c), c
    )


def permuted_captions(world):
    n = len(world.classes)
    order = torch.randperm(n, generator=generator(0))
    return captions_of(world.texts[world.classes[order]], torch.arange(n), world.texts)


NOTHING = {
    "a constant": lambda world: table_votes(
        shares(1, world.n_classes, 5).repeat(len(world.classes), 1)
    ),
    "no votes": lambda world: table_votes(torch.zeros(len(world.classes), world.n_classes)),
    "uniform scores": uniform_scores,
    "permuted": lambda world: table_votes(world.vote_table().roll(7, dims=0)),
    "permuted captions": permuted_captions,
}
FEW = {"votes": World.votes, "captions": lambda world: world.captions(right=1)}


@pytest.mark.parametrize(
    ("votes", "n", "c"),
    [
        *itertools.product(NOTHING.values(), [300], [20]),
        *((votes, n, c) for votes in FEW.values() for n, c in [(1, 6), (5, 6), (300, 1)]),
    ],
)
def test_votes_without_information_change_no_label(votes, n, c):
    """Labels and classifier are the adapted ones, here zero-shot, and nothing warns."""
    world = World.of(n, c)
    images = world.images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse(images, votes(world))
    scores = world.zero_shot()
    assert not fused.parameters.test.significant
    assert fused.labels.tolist() == scores.argmax(1).tolist()
    assert fused.confidence.tolist() == pytest.approx(
        scores.softmax(1).amax(1).tolist(), abs=1e-4
    )
    assert fused.individual_labels.keys() == {"zero_shot"}
    assert fused.gains == {}
    assert all(map(torch.equal, fused.head, images.adapted))


def test_with_a_class_without_images_labels_are_better_than_zero_shot_ones():
    world = World.of()
    gone = 5
    kept = world.classes != gone
    world.classes, world.features = world.classes[kept], world.features[kept]
    never = world.vote_table()
    never[:, gone] = 0
    never /= never.sum(dim=1, keepdim=True)
    for votes in (table_votes(never), world.captions(right=0.8)):
        fused = fuse(world.images(), votes)
        assert fused.head.weights.isfinite().all() and fused.confidence.isfinite().all()
        assert (fused.labels == gone).sum() < (world.calibrated().argmax(1) == gone).sum()
        assert world.right(fused.labels) > world.right(world.calibrated().argmax(1)) + 0.1


# --- parts, order, memory ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [64, 899])
def test_features_on_the_disk_give_what_features_in_memory_give(monkeypatch, rows):
    world = World.of()
    images = world.images()
    draw = generator(3)
    texts = F.normalize(
        world.texts[world.classes] + 0.15 * torch.randn(900, 24, generator=draw)
    )
    texts, row_of = torch.cat([texts, torch.zeros(1, 24)]), torch.arange(900)
    row_of[::5] = 900
    whole = fuse(images, caption_votes(texts, row_of, world.texts, SCALE))
    monkeypatch.setattr(label_sources, "ROWS", rows)
    there = ClipFeatures.of(on_disk(world.features), world.texts, SCALE)
    votes = caption_votes(on_disk(texts), row_of, world.texts, SCALE)
    found = fuse(there, votes)
    assert found.labels.tolist() == whole.labels.tolist()
    torch.testing.assert_close(found.confidence, whole.confidence, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.head, whole.head, atol=1e-3, rtol=1e-3)
    assert found.gains == pytest.approx(whole.gains, rel=1e-3)


def test_parameters_of_a_sample_are_nearly_the_same(monkeypatch):
    world = World.of()
    whole = fuse(world.images(), world.votes())
    monkeypatch.setattr(fusion, "SAMPLE", 300 * 6)
    model = LabelModel(world.images(), world.votes())
    assert model.sample.tolist() == list(range(0, 900, 3))
    some = model.fused()
    assert (some.labels == whole.labels).double().mean() > 0.95


def test_the_order_of_images_and_classes_does_not_matter():
    c = KEPT + 4
    world = World.of(c=c)
    table = world.vote_table()
    there = fuse(world.images(), table_votes(table))
    order = torch.randperm(900, generator=generator(1))
    classes = torch.randperm(
        c, generator=generator(1)
    )  # new class k is old class classes[k]
    world.features, world.texts = world.features[order], world.texts[classes]
    back = fuse(world.images(), table_votes(table[order][:, classes]))
    assert classes[back.labels].tolist() == there.labels[order].tolist()
    torch.testing.assert_close(
        back.confidence, there.confidence[order], atol=1e-4, rtol=1e-3
    )
    # Two weights of the head are learned across folds of the images, which are others now.
    torch.testing.assert_close(
        back.head.weights, there.head.weights[classes], atol=0.1, rtol=0.05
    )


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest tensor had that any operation made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.entries = max(self.entries, one.numel())
        return made


def test_no_table_of_all_images_and_classes_is_made(monkeypatch):
    n, c = 20_000, 200
    monkeypatch.setattr(label_sources, "ROWS", 512)
    monkeypatch.setattr(fusion, "SAMPLE", 2**17)
    monkeypatch.setattr(adaptation, "SMALL_SAMPLE", 2**17)
    monkeypatch.setattr(adaptation, "MAX_IMAGES", 2**12)
    monkeypatch.setattr(permutation_test, "N_PERMUTATIONS", 19)
    monkeypatch.setattr(fusion, "ROUNDS", 2)
    world = World.of(n, c)
    images = ClipFeatures.of(on_disk(world.features), world.texts, SCALE)
    texts = torch.cat([world.texts[world.classes], torch.zeros(1, 24)])
    votes = caption_votes(on_disk(texts), torch.arange(n), world.texts, SCALE)
    with Largest() as largest:
        fused = fuse(images, votes)
    assert fused.parameters.test.significant
    # Two predictors of a sample at once, or the posterior of all images: not their features.
    assert largest.entries <= max(2 * 2**17, n * KEPT) < n * world.texts.shape[1]
    assert largest.entries < n * c / 5
    with Largest() as whole:
        images.zero_shot(ALL)
    assert whole.entries == n * c  # such a table would be seen


# --- answers -------------------------------------------------------------------------------------


def labelled(world, rows, *, classes=None, drawn=0):
    """Answers about rows, by default the true classes; the first `drawn` rows check."""
    rows = torch.tensor(sorted(rows))
    named = (world.classes if classes is None else classes)[rows]
    is_drawn = torch.arange(len(rows)) < drawn
    return LabelledRows(
        len(world.classes), rows, F.one_hot(named, world.n_classes).double(), is_drawn
    )


@pytest.mark.parametrize("voted", ["captions", "noise", "nothing"])
def test_labels_learn_from_answers(voted):
    """Answered images have their answers, and other images more often the right class."""
    world = World.of(noise=0.9, text_noise=0.9)
    votes = world.captions(
        right={"captions": 0.5}.get(voted, 0.0), silent=voted == "nothing"
    )
    rows = torch.randperm(len(world.classes), generator=generator(5))[:150].tolist()
    others = torch.ones(len(world.classes), dtype=torch.bool)
    others[rows] = False
    before = fuse(world.images(), votes)
    after = fuse(world.images(), votes, labelled=labelled(world, rows))
    right = [(one.labels == world.classes).double() for one in (before, after)]
    assert right[1][rows].mean() == 1 and (after.confidence[rows] == 1).all()
    assert right[1][others].mean() > right[0][others].mean() + 0.02


def test_images_of_none_of_the_classes_have_no_part_in_them():
    world = World.of(300)
    rows, shares = torch.tensor([4, 9]), torch.zeros(2, world.n_classes).double()
    none = LabelledRows(300, rows, shares, torch.zeros(2).bool())
    found = fuse(world.images(), world.captions(), labelled=none)
    assert (found.confidence == 0).nonzero()[:, 0].tolist() == [4, 9]
    assert world.right(found.labels) > 0.75


def test_of_two_answers_that_differ_the_other_sources_choose():
    world = World.of(300)
    rows = torch.arange(40)
    shares = F.one_hot(world.classes[rows], world.n_classes).double()
    shares = (shares + shares.roll(1, dims=1)) / 2
    answers = LabelledRows(300, rows, shares, rows < 0)
    found = fuse(world.images(), world.captions(), labelled=answers)
    assert (found.labels[rows] == world.classes[rows]).double().mean() > 0.8


def test_an_image_is_checked_without_its_answer():
    """Where the answer is wrong, the label of the image is not that answer."""
    world, errs = World.of(400), torch.arange(0, 400, 40)
    named = world.classes.clone()
    named[errs] = (named[errs] + 1) % world.n_classes
    answers = labelled(world, range(0, 400, 8), classes=named, drawn=50)
    checked = fuse(world.images(), world.captions(), labelled=answers).checked
    right = checked["fused"].right
    assert len(right) == 50 and right.double().mean() > 0.6
    assert right[::5].double().mean() < 0.2
    head = checked["image_prototypes"]
    assert head.right[::5].double().mean() < 0.4 and head.right.double().mean() > 0.5


def test_a_person_who_errs_does_no_harm():
    world = World.of(noise=0.9, text_noise=0.9)
    votes = world.captions(right=0.5)
    errs = torch.rand(len(world.classes), generator=generator(3)) < 0.1
    named = torch.where(errs, (world.classes + 2) % world.n_classes, world.classes)
    rows = range(0, len(world.classes), 9)
    before = world.right(fuse(world.images(), votes).labels)
    after = fuse(world.images(), votes, labelled=labelled(world, rows, classes=named))
    assert world.right(after.labels) > before
