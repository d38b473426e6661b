import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.witnesses import ALL, SCALE, TableVotes, World, captions_of, generator, on_disk
from torch.utils._python_dispatch import TorchDispatchMode

from latteclip.clip.classifier import Classifier
from latteclip.labels import corroboration, fusion, witnesses
from latteclip.labels.fusion import KEPT, Posterior, Witnesses, fit_mixture, fuse
from latteclip.labels.witnesses import CaptionVotes, Images, LabelVotes, ScoreVotes

N, C, D = 23, 7, 5


def shares(n, c, seed):
    return (2 * torch.randn(n, c, generator=generator(seed)).double()).softmax(dim=1)


# --- prototypes ----------------------------------------------------------------------------------


def test_a_row_has_no_part_in_the_prototypes_it_is_compared_with():
    x = torch.randn(N, D, generator=generator(1)).double()
    table = shares(N, C, 2)
    found = fusion.own_part_left_out(x, table, table.T @ x)
    for i in range(N):
        for c in range(C):
            prototype = sum(table[j, c] * x[j] for j in range(N) if j != i)
            assert found[i, c].item() == pytest.approx((x[i] @ prototype / prototype.norm()).item())


@pytest.mark.parametrize("c", [1, KEPT + 5])
def test_a_posterior_keeps_the_largest_probabilities(c):
    table = shares(N, c, 3)
    kept = Posterior.empty(N, c)
    kept.put(slice(0, 9), table[:9])
    kept.put(slice(9, N), table[9:])
    threshold = table.sort(dim=1, descending=True).values[:, :KEPT][:, -1:]
    wanted = torch.where(table >= threshold, table, 0.0)
    wanted /= wanted.sum(dim=1, keepdim=True)
    torch.testing.assert_close(kept.table(ALL), wanted, atol=1e-7, rtol=1e-6)
    assert kept.classes.shape == (N, min(c, KEPT))
    rows = torch.tensor([20, 3])
    torch.testing.assert_close(kept.table(rows), wanted[rows], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(kept.table(ALL).sum(dim=1), torch.ones(N).double())


# --- labels that are there already ---------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
def test_a_head_of_labels_predicts_them_whatever_the_class_texts_say(shift):
    world = World.of(noise=0.2)
    labels = (world.classes + shift) % world.n_classes
    images = world.images()
    fused = fuse(images, LabelVotes(labels, world.n_classes))
    head = images.classifier(fused.weights, SCALE)
    assert world.right((head.scores(world.features).argmax(dim=1) - shift) % 6) > 0.95
    assert fused.trust.corroboration.found


# --- likelihood ----------------------------------------------------------------------------------


def mixture(predictors, votes, weights, rate):
    """Mean log-likelihood of votes under u softmax(sum of weighted predictors) + (1 - u) mean."""
    predicted = sum(w * table for w, table in zip(weights, predictors, strict=True)).softmax(dim=1)
    mixed = rate * predicted + (1 - rate) * votes.mean(dim=0)
    return (votes * mixed.log()).sum(dim=1).mean().item()


@pytest.mark.parametrize(("seed", "right"), [(0, 0.9), (1, 0.5), (2, 0.5)])
def test_no_weights_and_rate_of_a_grid_are_likelier(seed, right):
    world = World.of(seed=seed)
    votes = world.captions(right=right, seed=seed).probabilities(ALL)
    other = 2 * torch.randn(900, 6, generator=generator(seed)) + 2 * F.one_hot(world.classes, 6)
    predictors = [world.calibrated(), other.double()]
    weights, rate = fit_mixture(predictors, votes, votes.mean(dim=0))
    assert (weights >= 0).all()
    assert 0 < rate < 1
    found = mixture(predictors, votes, weights.tolist(), rate)
    steps = [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    rates = [number / 20 for number in range(20)]
    best = max(mixture(predictors, votes, (a, b), u) for a in steps for b in steps for u in rates)
    assert found > best - 1e-3  # what the ridge may cost


@pytest.mark.parametrize("seed", range(3))
def test_beside_one_that_says_the_opposite_the_other_is_fitted_as_if_alone(seed):
    world = World.of(seed=seed)
    votes = world.votes(seed=seed).table
    noise = 1.5 * torch.randn(900, 6, generator=generator(seed))
    opposite = world.calibrated() - 6 * F.one_hot(world.classes, 6) + noise
    overall = votes.mean(dim=0)
    weights, rate = fit_mixture([world.calibrated(), opposite], votes, overall)
    alone, rate_alone = fit_mixture([world.calibrated()], votes, overall)
    assert weights.tolist() == pytest.approx([alone.item(), 0], rel=1e-4)
    assert rate == pytest.approx(rate_alone, rel=1e-4)
    weights = fusion.fit_weights([world.calibrated(), opposite], votes)
    alone = fusion.fit_weights([world.calibrated()], votes)
    assert weights.tolist() == pytest.approx([alone.item(), 0], rel=1e-4)


def test_gains_are_nats_over_the_mean_vote():
    world = World.of()
    votes = world.votes().table
    predictors = [world.calibrated(), torch.zeros(900, 6).double()]
    found = fusion.gains(predictors, votes)
    weights, rate = fit_mixture(predictors[:1], votes, votes.mean(dim=0))
    blind = (votes * votes.mean(dim=0).log()).sum(dim=1).mean().item()
    wanted = mixture(predictors[:1], votes, weights, rate) - blind
    assert wanted > 0.1
    assert found["zero_shot"] == pytest.approx(wanted, abs=1e-6)
    assert found["both"] == pytest.approx(wanted, abs=1e-3)
    # Uniform probabilities can gain nothing over the mean.
    assert found["images"] == pytest.approx(0, abs=1e-3)


def test_the_posterior_is_that_of_its_formula():
    world = World.of(40)
    images, votes = world.images(), world.captions(silent=0.2)
    own = shares(40, 6, 8)
    posterior = Posterior.empty(40, 6)
    posterior.put(ALL, own)
    confusion = shares(6, 6, 4)
    trust = fusion.Trust(corroboration.Corroboration(9, 9, 0.001), confusion, 0.7, 2.0, 0.5, 0.6)
    found = Witnesses(images, votes, posterior).log_posterior(ALL, trust).exp()
    x, texts, cast = images.centred.double(), votes.features(ALL), votes.probabilities(ALL)
    z = world.calibrated().log_softmax(dim=1)

    def cosine(rows, i, c):
        """Of a row of length 1 or not with the prototype of the others."""
        prototype = sum(own[j, c] * rows[j] for j in range(40) if j != i)
        return (rows[i] @ prototype / prototype.norm()).item()

    for i in range(40):
        joint = []
        for c in range(6):
            q = 0.7 * z[i, c].item() + 2 * fusion.SHARPNESS * cosine(x, i, c)
            if not votes.has[i]:
                joint.append(math.exp(q))
                continue
            told = sum(cast[i, k] * confusion[c, k] for k in range(6)).item()
            text = 0.5 * fusion.SHARPNESS * cosine(texts, i, c)
            joint.append(math.exp((1 - 0.6**4) * q) * told * math.exp(text))
        assert found[i].tolist() == pytest.approx([p / sum(joint) for p in joint], abs=1e-4)


# --- labels --------------------------------------------------------------------------------------


def on_their_own(world, votes, fused):
    """Shares of right labels of each witness alone."""
    return {
        "votes": world.right(votes.probabilities(ALL).argmax(1)),
        "zero_shot": world.right(world.calibrated().argmax(1)),
        "images": world.right(fused.said["images"]),
    }


@pytest.mark.parametrize("seed", range(3))
def test_witnesses_that_err_independently_are_better_together(seed):
    world = World.of(seed=seed)
    votes = world.votes(seed=seed)
    fused = fuse(world.images(), votes)
    assert world.right(fused.labels) > max(on_their_own(world, votes, fused).values()) + 0.02


def test_half_wrong_captions_and_images_are_better_than_captions():
    world = World.of()
    votes = world.captions(right=0.4)
    fused = fuse(world.images(), votes)
    alone = on_their_own(world, votes, fused)
    assert world.right(fused.labels) > max(alone["votes"], alone["zero_shot"]) + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_votes_that_copy_the_mistakes_of_zero_shot_scores_lose_nothing(seed):
    world = World.of(seed=seed)
    labels = world.calibrated().argmax(1)
    fused = fuse(world.images(), TableVotes.of(0.9 * F.one_hot(labels, 6) + 0.1 / 6))
    assert fused.trust.rate > 0.85
    assert world.right(fused.labels) > world.right(labels) - 0.01


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


def test_the_classifier_gives_the_labels_of_images_without_votes_and_fits_others():
    world, others = World.of(1500), World.of(1500)
    some, rest = slice(0, 900), slice(900, 1500)
    world.classes, world.features = world.classes[some], world.features[some]
    images = world.images()
    fused = fuse(images, world.captions(right=0.9))
    classifier = images.classifier(fused.weights, SCALE)
    found = classifier.scores(others.features[rest]).argmax(1) == others.classes[rest]
    scores = SCALE * others.features[rest] @ world.texts.T
    zero_shot = (scores - scores.mean(dim=0)).argmax(1) == others.classes[rest]
    assert found.double().mean() > zero_shot.double().mean() + 0.1


def test_confidence_is_the_probability_of_the_label():
    world = World.of()
    votes = world.votes()
    fused = fuse(world.images(), votes)
    assert ((fused.confidence > 1 / 6) & (fused.confidence <= 1)).all()
    order = fused.confidence.argsort(descending=True)
    right = (fused.labels == world.classes)[order].double()
    assert right[:450].mean() > right[450:].mean() + 0.1


def test_the_head_says_the_class_of_each_image_without_its_own_part():
    world = World.of(210, noise=1.0)
    votes = world.votes()
    fused = fuse(world.images(), votes)
    with_own_part = world.images().classifier(fused.weights, SCALE).scores(world.features).argmax(1)
    differs = with_own_part != fused.head
    assert differs.any()
    table = votes.table[differs]
    more = table.gather(1, with_own_part[differs, None]).mean()
    assert more > table.gather(1, fused.head[differs, None]).mean()  # an image votes for itself


def test_a_vote_for_a_class_that_votes_name_too_often_says_less():
    """Captions name the class 0 for half of the images of every class."""
    world = World.of()
    often = torch.rand(900, generator=generator(5)) < 0.5
    table = world.votes().table
    table[often] = F.one_hot(torch.zeros(int(often.sum()), dtype=torch.long), 6).double()
    trust = fuse(world.images(), TableVotes.of(table)).trust
    one, other = trust.classes(torch.eye(6, dtype=torch.float64))[:2]
    assert trust.corroboration.found
    assert one[0] < other[1] - 0.1
    torch.testing.assert_close(one.sum().item(), 1.0)


# --- where nothing is told -----------------------------------------------------------------------


def assert_calibrated(world, votes):
    """Labels and classifier are those of calibrated zero-shot scores, and nothing warns."""
    images = world.images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse(images, votes)
    scores = world.calibrated()
    assert not fused.trust.corroboration.found
    assert fused.labels.tolist() == scores.argmax(1).tolist()
    assert fused.confidence.tolist() == pytest.approx(scores.softmax(1).amax(1).tolist(), abs=1e-4)
    assert fused.said.keys() == {"zero_shot"}
    assert fused.said["zero_shot"].tolist() == fused.labels.tolist()
    assert fused.gains == {}
    found = images.classifier(fused.weights, SCALE)
    mean = world.features.double().mean(dim=0)
    wanted = Classifier.of(world.texts, -(world.texts.double() @ mean))
    torch.testing.assert_close(found.weights, wanted.weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.bias, wanted.bias, atol=1e-5, rtol=1e-4)
    others = F.normalize(torch.randn(200, world.features.shape[1], generator=generator(9)), dim=1)
    assert found.scores(others).argmax(1).tolist() == wanted.scores(others).argmax(1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_permuted_votes_change_no_label(seed):
    world = World.of()
    dealt = torch.randperm(900, generator=generator(seed))
    assert_calibrated(world, TableVotes.of(world.votes().table[dealt]))
    captions = world.captions(right=1)
    assert_calibrated(
        world, captions_of(captions.texts[:-1][dealt], torch.arange(900), world.texts)
    )


def constant_scores(n, c):
    draw = generator(0)
    options = torch.stack([torch.randperm(c, generator=draw) for _ in range(n)])
    return ScoreVotes.of(options, -20 * torch.rand(n, 1, generator=draw).expand(n, c), c)


def constant_scores_of_some(n, c):
    """Of four classes at most, which may be others for each image; each class has its score."""
    draw = generator(0)
    k = min(4, c)
    options = torch.stack([torch.randperm(c, generator=draw)[:k] for _ in range(n)])
    return ScoreVotes.of(options, (9 * torch.randn(c, generator=draw))[options], c)


NOTHING = {
    "a constant": lambda n, c: TableVotes.of(shares(1, c, 5).repeat(n, 1)),
    "uniform": lambda n, c: TableVotes.of(torch.full((n, c), 1 / c)),
    "no votes": lambda n, c: TableVotes.of(torch.zeros(n, c)),
    "uniform scores": constant_scores,
    "a score for each class": constant_scores_of_some,
    "no scores": lambda n, c: ScoreVotes.of(torch.full((n, 3), -1), torch.zeros(n, 3), c),
}


@pytest.mark.parametrize("votes", NOTHING)
@pytest.mark.parametrize(("n", "c"), [(2, 4), (300, 20)])
def test_votes_that_say_nothing_change_no_label(votes, n, c):
    assert_calibrated(World.of(n, c), NOTHING[votes](n, c))


@pytest.mark.parametrize(("n", "c"), [(1, 6), (2, 6), (5, 6), (300, 1)])
def test_of_very_few_images_or_one_class_nothing_is_learned(n, c):
    world = World.of(n, c)
    assert_calibrated(world, world.votes())
    assert_calibrated(world, world.captions(right=1))


def test_images_that_are_all_alike_get_one_label():
    world = World.of(300)
    world.features = world.features[:1].repeat(300, 1)
    fused = fuse(world.images(), world.votes())
    assert not fused.trust.corroboration.found
    assert len(set(fused.labels.tolist())) == 1
    assert fused.confidence.tolist() == pytest.approx([1 / 6] * 300)
    assert fused.weights.isfinite().all()


def test_with_a_class_without_images_labels_are_better_than_calibrated_ones():
    world = World.of()
    gone = 5
    kept = world.classes != gone
    world.classes, world.features = world.classes[kept], world.features[kept]
    never = world.votes().table
    never[:, gone] = 0
    never /= never.sum(dim=1, keepdim=True)
    for votes in (world.votes(), TableVotes.of(never), world.captions(right=0.8)):
        fused = fuse(world.images(), votes)
        assert fused.trust.corroboration.found
        assert fused.weights.isfinite().all()
        assert fused.confidence.isfinite().all()
        assert (fused.labels == gone).sum() < (fused.said["zero_shot"] == gone).sum()
        assert world.right(fused.labels) > world.right(world.calibrated().argmax(1)) + 0.1


# --- parts, order, memory ------------------------------------------------------------------------


def assert_same(one, other):
    assert one.labels.tolist() == other.labels.tolist()
    torch.testing.assert_close(one.confidence, other.confidence, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(one.weights, other.weights, atol=1e-3, rtol=1e-3)
    assert one.trust.rate == pytest.approx(other.trust.rate, rel=1e-4)
    assert one.gains == pytest.approx(other.gains, rel=1e-3)
    assert {name: said.tolist() for name, said in one.said.items()} == {
        name: said.tolist() for name, said in other.said.items()
    }


def test_the_same_twice_is_the_same_to_the_bit():
    world = World.of()
    one, other = (fuse(world.images(), world.captions(silent=0.2)) for _ in range(2))
    assert torch.equal(one.confidence, other.confidence)
    assert torch.equal(one.weights, other.weights)
    assert (one.trust.rate, one.gains) == (other.trust.rate, other.gains)


@pytest.mark.parametrize("rows", [64, 899])
def test_features_on_the_disk_give_what_features_in_memory_give(monkeypatch, rows):
    world = World.of()
    images, captions = world.images(), world.captions(silent=0.2)
    whole = fuse(images, captions)
    monkeypatch.setattr(witnesses, "ROWS", rows)
    there = Images.of(on_disk(world.features), world.texts, SCALE)
    votes = CaptionVotes.of(on_disk(captions.texts), captions.row_of, world.texts, SCALE)
    assert_same(fuse(there, votes), whole)
    prototypes = fusion.prototypes_by_zero_shot(images)
    torch.testing.assert_close(
        fusion.prototypes_by_zero_shot(there), prototypes, atol=1e-4, rtol=1e-4
    )


def test_what_is_learned_from_a_sample_is_nearly_the_same(monkeypatch):
    world = World.of()
    whole = fuse(world.images(), world.votes())
    monkeypatch.setattr(fusion, "SAMPLE", 300 * 6)
    seen = []
    learn = Witnesses.learn

    def look(self, sample, *others):
        seen.append(sample.tolist())
        return learn(self, sample, *others)

    monkeypatch.setattr(Witnesses, "learn", look)
    some = fuse(world.images(), world.votes())
    assert seen == [list(range(0, 900, 3))] * fusion.ROUNDS
    assert (some.labels == whole.labels).double().mean() > 0.95


def test_the_order_of_images_does_not_matter():
    world = World.of()
    votes = world.votes()
    there = fuse(world.images(), votes)
    order = torch.randperm(900, generator=generator(1))
    world.features = world.features[order]
    back = fuse(world.images(), TableVotes.of(votes.table[order]))
    assert back.labels.tolist() == there.labels[order].tolist()
    torch.testing.assert_close(back.confidence, there.confidence[order], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(back.weights, there.weights, atol=1e-3, rtol=1e-3)


def test_the_order_of_classes_does_not_matter():
    c = KEPT + 4
    world = World.of(c=c)
    votes = world.votes()
    there = fuse(world.images(), votes)
    order = torch.randperm(c, generator=generator(1))  # new class k is old class order[k]
    world.texts = world.texts[order]
    back = fuse(world.images(), TableVotes.of(votes.table[:, order]))
    assert order[back.labels].tolist() == there.labels.tolist()
    torch.testing.assert_close(back.weights, there.weights[order], atol=1e-3, rtol=1e-3)


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
    monkeypatch.setattr(witnesses, "ROWS", 512)
    monkeypatch.setattr(fusion, "SAMPLE", 2**17)
    monkeypatch.setattr(corroboration, "DEALS", 19)
    monkeypatch.setattr(fusion, "ROUNDS", 2)
    world = World.of(n, c)
    images, texts = Images.of(on_disk(world.features), world.texts, SCALE), world.captions()
    votes = CaptionVotes.of(on_disk(texts.texts), texts.row_of, world.texts, SCALE)
    with Largest() as largest:
        fused = fuse(images, votes)
    assert fused.trust.corroboration.found
    # Two predictors of a sample at once, or what is kept of each image: not its features.
    assert largest.entries <= max(2 * 2**17, n * KEPT) < n * world.texts.shape[1]
    assert largest.entries < n * c / 5
    with Largest() as whole:
        images.zero_shot(ALL)
    assert whole.entries == n * c  # such a table would be seen


# --- prototypes from zero-shot scores ------------------------------------------------------------


def test_prototypes_without_votes_are_the_texts_and_what_images_add():
    world = World.of()
    images = world.images()
    weights = fusion.prototypes_by_zero_shot(images)
    kept = images.zero_shot(ALL).exp()
    prototypes = F.normalize(kept.T @ images.centred.double(), dim=1)
    added = weights - images.texts
    torch.testing.assert_close(F.normalize(added, dim=1), prototypes, atol=1e-4, rtol=1e-3)
    lengths = added.norm(dim=1)
    assert lengths.min() > 0
    assert lengths.max().item() == pytest.approx(lengths.min().item(), rel=1e-4)
