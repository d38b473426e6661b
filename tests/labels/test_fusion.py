import math

import pytest
import torch
import torch.nn.functional as F

from latteclip.labels import fusion

N, C, G = 11, 5, 7


def generator(seed):
    return torch.Generator().manual_seed(seed)


def log_probabilities(n, c, seed):
    return (2 * torch.randn(n, c, generator=generator(seed)).double()).log_softmax(1)


def some_votes(n, c, seed, silent=(2,)):
    votes = log_probabilities(n, c, seed).exp()
    votes[list(silent)] = 0
    return votes


def some_model():
    draw = generator(3)
    return fusion.VoteModel(
        torch.tensor(0.4).double(),
        torch.randn(C, generator=draw).double(),
        torch.randn(C, generator=draw).double(),
        torch.randn(C, generator=draw).double().log_softmax(0),
    )


def in_loops(model, zero_shot, votes):
    """Log-likelihood and fused probabilities, from the formulas of the module's docstring."""
    temperature = math.exp(model.log_temperature)
    rates = [1 / (1 + math.exp(-logit)) for logit in model.rate_logits.tolist()]
    chances = [math.exp(x) for x in model.log_chances.tolist()]
    likelihood, fused = 0.0, []
    for scores, q in zip(zero_shot.tolist(), votes.tolist(), strict=True):
        powers = [
            math.exp(score / temperature + bias)
            for score, bias in zip(scores, model.biases.tolist(), strict=True)
        ]
        prior = [power / sum(powers) for power in powers]
        says = [  # [class][vote]
            [rates[c] * (k == c) + (1 - rates[c]) * chances[k] for k in range(C)] for c in range(C)
        ]
        for k in range(C):
            likelihood += q[k] * math.log(sum(prior[c] * says[c][k] for c in range(C)))
        joint = [prior[c] * math.prod(says[c][k] ** q[k] for k in range(C)) for c in range(C)]
        fused.append([value / sum(joint) for value in joint])
    return likelihood, torch.tensor(fused, dtype=torch.float64)


def test_the_model_equals_its_formulas_in_loops():
    model, zero_shot, votes = some_model(), log_probabilities(N, C, 1), some_votes(N, C, 2)
    likelihood, fused = in_loops(model, zero_shot, votes)
    assert model.log_likelihood(zero_shot, votes).item() == pytest.approx(likelihood)
    torch.testing.assert_close(model.log_posterior(zero_shot, votes).exp(), fused)


def test_a_caption_that_does_not_vote_changes_no_probability():
    model, zero_shot = some_model(), log_probabilities(N, C, 1)
    torch.testing.assert_close(
        model.log_posterior(zero_shot, torch.zeros(N, C).double()), model.log_prior(zero_shot)
    )


def test_a_vote_weighs_more_for_a_class_that_is_seldom_named_by_chance():
    chances = torch.tensor([0.7, 0.2, 0.1]).double()
    zeros = torch.zeros(3).double()
    model = fusion.VoteModel(zeros[0], zeros, zeros, chances.log())
    torch.testing.assert_close(model.weights(), (1 + 1 / chances).log())


def test_mean_group_votes_equal_the_loops():
    votes = some_votes(G, C, 4, silent=(1, 5))
    members = [[0, 3], [3, 4], [6], [0, 3, 8], [9], [10], [0]]  # of the silent 1: 3, 4; of 5: 10
    pairs = [(group, image) for group, images in enumerate(members) for image in images]
    groups, images = torch.tensor(pairs).T
    found = fusion.mean_group_votes(votes, groups, images, N)
    for image in range(N):
        voters = [g for g in range(G) if image in members[g] and g not in (1, 5)]
        for c in range(C):
            wanted = sum(votes[g, c].item() for g in voters) / max(1, len(voters))
            assert found[image, c].item() == pytest.approx(wanted)


def test_chances_of_labels_equal_the_loops():
    votes = some_votes(N, C, 5, silent=(0, 7))
    labels = torch.tensor([0, 1, 0, 3, 3, 1, 0, 4, 1, 0, 3])  # no image is labelled 2
    found = fusion.chances_of_labels(votes, labels)
    rows, total = votes.tolist(), N - 2
    overall = [(sum(row[k] for row in rows) + 1 / C) / (total + 1) for k in range(C)]
    for label in range(C):
        own = [row for row, of in zip(rows, labels.tolist(), strict=True) if of == label]
        n = sum(sum(row) for row in own)
        for k in range(C):
            wanted = (sum(row[k] for row in own) + overall[k]) / (n + 1)
            assert found[label, k].item() == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(4))
def test_the_rate_of_groups_is_the_best_of_a_grid(seed):
    posterior, votes = log_probabilities(N, C, seed).exp(), some_votes(N, C, 10 + seed)
    votes = (votes + 0.3 * posterior) * (votes.sum(1, keepdim=True) > 0)
    votes /= votes.sum(1, keepdim=True).clamp(min=1e-9)
    chances = log_probabilities(N, C, 20 + seed).exp()

    def gain(rate):
        return (votes * (rate * posterior + (1 - rate) * chances).log()).sum().item() - (
            votes * chances.log()
        ).sum().item()

    labels = torch.randperm(N, generator=generator(30 + seed))  # a row of chances for each image
    rate, evidence = fusion.fit_rate(posterior.log(), votes, labels, chances[labels.argsort()])
    assert 0 <= rate < 1
    assert evidence == pytest.approx(gain(rate))
    assert all(gain(x / 500) <= evidence + 1e-9 for x in range(500))


# Images whose class is known, so that accuracy can be told.

MANY = 1500


def images(n=MANY, c=6, *, seed=0, strength=2.0, sharpened=1.6):
    """Classes [n] and overconfident, biased zero-shot log-probabilities [n, c]."""
    draw = generator(seed)
    classes = torch.randint(c, (n,), generator=draw)
    scores = torch.randn(n, c, generator=draw).double()
    scores[torch.arange(n), classes] += strength
    biases = 0.7 * torch.randn(c, generator=draw).double()
    return classes, (sharpened * (scores + biases)).log_softmax(1)


def captions(classes, c=6, *, right, seed=0):
    """Votes [n, c] that name the class for a share of the images, else that of any image."""
    draw = generator(100 + seed)
    swapped = torch.rand(len(classes), generator=draw) >= right
    named = torch.where(swapped, classes[torch.randperm(len(classes), generator=draw)], classes)
    noise = torch.randn(len(classes), c, generator=draw).double()
    return (6 * F.one_hot(named, c) + noise).softmax(1)


def no_groups(votes):
    return torch.zeros_like(votes)


def fuse(zero_shot, votes, group_votes=None):
    labels = zero_shot.argmax(1)
    return fusion.fuse(
        zero_shot, votes, no_groups(votes) if group_votes is None else group_votes, labels
    )


def accuracy(scores, classes):
    return (scores.argmax(1) == classes).double().mean().item()


@pytest.mark.parametrize("right", [0.9, 0.6, 0.3])
def test_captions_that_are_sometimes_right_make_labels_better(right):
    classes, zero_shot = images()
    votes = captions(classes, right=right)
    fused = fuse(zero_shot, votes)
    best = max(accuracy(zero_shot, classes), accuracy(votes, classes))
    assert accuracy(fused.log_posterior, classes) > best + 0.02
    plain_sum = accuracy(zero_shot + votes.log(), classes)
    assert accuracy(fused.log_posterior, classes) > plain_sum


def test_temperature_and_rate_are_found():
    classes, zero_shot = images(n=4000, sharpened=3.0)
    for right in (0.8, 0.4):
        model = fuse(zero_shot, captions(classes, right=right)).model
        # Logits of a class drawn with unit noise are calibrated at `strength` times the noise.
        assert model.log_temperature.exp().item() == pytest.approx(3.0 / 2.0, rel=0.25)
        rates = model.rate_logits.sigmoid()
        assert rates.mean().item() == pytest.approx(right, abs=0.08)


def test_fused_confidence_says_how_many_labels_are_right():
    classes, zero_shot = images(n=4000, sharpened=3.0)
    posterior = fuse(zero_shot, captions(classes, right=0.6)).log_posterior
    assert posterior.exp().amax(1).mean().item() == pytest.approx(
        accuracy(posterior, classes), abs=0.05
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [60, MANY])
def test_captions_of_other_images_leave_the_zero_shot_labels(n, seed):
    classes, zero_shot = images(n, seed=seed)
    fused = fuse(zero_shot, captions(classes, right=0.0, seed=seed))
    assert fused.model is None
    assert fused.evidence <= fused.needed
    torch.testing.assert_close(fused.log_posterior, zero_shot)


@pytest.mark.parametrize("vote", [[0.2] * 5 + [0.0], [0, 1, 0, 0, 0, 0], [0.5, 0.3, 0.2, 0, 0, 0]])
def test_one_caption_for_all_images_leaves_the_zero_shot_labels(vote):
    _, zero_shot = images()
    votes = torch.tensor([vote], dtype=torch.float64).expand(MANY, -1)
    torch.testing.assert_close(fuse(zero_shot, votes).log_posterior, zero_shot)


def test_a_default_answer_does_not_draw_the_other_images_to_it():
    classes, zero_shot = images()
    votes = captions(classes, right=0.9)
    default = torch.rand(MANY, generator=generator(9)) < 0.5
    votes[default] = F.one_hot(torch.tensor(2), 6).double()
    fused = fuse(zero_shot, votes)
    assert accuracy(fused.log_posterior, classes) > accuracy(zero_shot, classes) + 0.05
    assert fused.model.weights()[2] < fused.model.weights()[[0, 1, 3, 4, 5]].min()


def test_a_class_that_captions_never_name_keeps_its_images():
    classes, zero_shot = images(strength=3.0)
    votes = captions(classes, right=1.0)
    never = classes == 4
    votes[never] = captions(torch.randint(4, (int(never.sum()),)), right=1.0, seed=1)
    assert int((votes.argmax(1) == 4).sum()) == 0
    posterior = fuse(zero_shot, votes).log_posterior
    assert accuracy(posterior[never], classes[never]) > 0.5
    assert accuracy(posterior, classes) > accuracy(zero_shot, classes)


def test_a_class_that_zero_shot_never_predicts_is_found_by_captions():
    classes, zero_shot = images()
    zero_shot[:, 3] -= 6
    kept = zero_shot.argmax(1) != 3
    classes, zero_shot = classes[kept], zero_shot[kept].log_softmax(1)
    posterior = fuse(zero_shot, captions(classes, right=0.95)).log_posterior
    assert int((posterior.argmax(1) == 3).sum()) > 50
    assert accuracy(posterior, classes) > accuracy(zero_shot, classes) + 0.1


def test_captions_that_repeat_the_zero_shot_labels_change_none():
    _, zero_shot = images()
    votes = captions(zero_shot.argmax(1), right=1.0)
    posterior = fuse(zero_shot, votes).log_posterior
    assert torch.equal(posterior.argmax(1), zero_shot.argmax(1))


def test_captions_that_name_the_classes_wrongly_but_consistently_are_not_believed():
    classes, zero_shot = images()
    alike = classes < 2  # images of two classes look like those of the next one, too
    zero_shot[alike, classes[alike] + 1] += 1.6
    zero_shot = zero_shot.log_softmax(1)
    votes = captions((classes + 1) % 6, right=1.0)
    torch.testing.assert_close(fuse(zero_shot, votes).log_posterior, zero_shot)


def test_the_order_of_images_changes_nothing():
    classes, zero_shot = images(600)
    votes = captions(classes, right=0.6)
    order = torch.randperm(600, generator=generator(5))
    there = fuse(zero_shot, votes).log_posterior
    back = fuse(zero_shot[order], votes[order]).log_posterior[order.argsort()]
    torch.testing.assert_close(back, there, rtol=1e-3, atol=1e-3)


def test_images_computed_in_parts_are_one_sum(monkeypatch):
    classes, zero_shot = images(100)
    votes = captions(classes, right=0.6)
    whole = fuse(zero_shot, votes)
    monkeypatch.setattr(fusion, "ROWS", 7)
    parts = fuse(zero_shot, votes)
    assert parts.evidence == pytest.approx(whole.evidence)
    torch.testing.assert_close(parts.log_posterior, whole.log_posterior, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_images_keeps_its_labels(n):
    zero_shot, votes = log_probabilities(n, 40, 1), some_votes(n, 40, 2, silent=())
    torch.testing.assert_close(fuse(zero_shot, votes, votes).log_posterior, zero_shot)


def test_one_class_is_the_label_of_all():
    fused = fuse(torch.zeros(9, 1).double(), torch.ones(9, 1).double(), torch.ones(9, 1).double())
    torch.testing.assert_close(fused.log_posterior, torch.zeros(9, 1).double())
    assert (fused.evidence, fused.group_evidence) == pytest.approx((0, 0), abs=1e-9)


def test_no_votes_at_all_leave_the_zero_shot_labels():
    zero_shot = log_probabilities(N, C, 1)
    nothing = torch.zeros(N, C).double()
    torch.testing.assert_close(fuse(zero_shot, nothing, nothing).log_posterior, zero_shot)


def test_groups_that_repeat_the_label_they_were_drawn_from_do_not_count():
    classes, zero_shot = images()
    votes = captions(classes, right=0.6)
    groups = captions(zero_shot.argmax(1), right=0.9, seed=7)
    fused = fuse(zero_shot, votes, groups)
    assert fused.group_rate == 0
    torch.testing.assert_close(fused.log_posterior, fuse(zero_shot, votes).log_posterior)


def test_groups_that_tell_images_of_a_label_apart_make_labels_better():
    classes, zero_shot = images()
    votes, groups = captions(classes, right=0.6), captions(classes, right=0.5, seed=7)
    fused = fuse(zero_shot, votes, groups)
    assert fused.group_rate > 0.1
    without = accuracy(fuse(zero_shot, votes).log_posterior, classes)
    assert accuracy(fused.log_posterior, classes) > without + 0.01


# What is computed in parts, in float32, for datasets of a million images.


@pytest.fixture
def noisy():
    """Zero-shot scores, votes of captions and of groups, and labels: float64."""
    draw = generator(4)
    n, c = 400, 7
    labels = torch.randint(c, (n,), generator=draw)

    def scores(right, strength):
        wrong = torch.randint(c, (n,), generator=draw)
        named = torch.where(torch.rand(n, generator=draw) < right, labels, wrong)
        noise = torch.randn(n, c, generator=draw)
        return (noise + strength * F.one_hot(named, c)).double()

    zero_shot_scores, own, groups = scores(0.8, 3), scores(0.7, 6), scores(0.9, 6)
    return zero_shot_scores, own.softmax(1), groups.softmax(1), zero_shot_scores.argmax(1)


def test_fused_labels_of_float32_tables_are_those_of_float64(noisy, monkeypatch):
    scores, own, groups, labels = noisy
    whole = fusion.fuse(scores.log_softmax(1), own, groups, labels)
    monkeypatch.setattr(fusion, "ROWS", 33)
    small = [table.float() for table in (scores, own, groups)]
    fused = fusion.fuse(fusion.log_probabilities(small[0]), *small[1:], labels)
    assert fused.log_posterior.dtype == torch.float32
    assert whole.model is not None
    assert fused.group_rate > 0
    assert fused.group_rate == pytest.approx(whole.group_rate, rel=1e-3)
    assert fused.evidence == pytest.approx(whole.evidence, rel=1e-5)
    assert torch.equal(fused.log_posterior.argmax(1), whole.log_posterior.argmax(1))
    torch.testing.assert_close(
        fused.log_posterior.exp(), whole.log_posterior.exp().float(), rtol=1e-3, atol=1e-4
    )


def test_log_probabilities_take_the_place_of_scores(monkeypatch):
    monkeypatch.setattr(fusion, "ROWS", 4)
    scores = torch.randn(N, C, generator=generator(1))
    wanted = scores.log_softmax(1)
    assert fusion.log_probabilities(scores) is scores
    torch.testing.assert_close(scores, wanted)
