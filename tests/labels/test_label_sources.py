import math

import pytest
import torch
import torch.nn.functional as F
from support.worlds import ALL, SCALE, World, captions_of, generator

from latteclip.labels.label_sources import (
    FLOOR,
    ClipFeatures,
    Head,
    class_score_votes,
    whiten,
)

N, C, D, U, K = 23, 7, 5, 4, 3


@pytest.fixture
def world():
    return World.of(N, C, D)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_zero_shot_scores_are_cosines_without_a_share_of_class_means(world, share):
    scores = SCALE * world.features.double() @ world.texts.double().T
    wanted = (scores - share * scores.mean(dim=0)).log_softmax(dim=1)
    found = world.images().without_bias(share).zero_shot(ALL)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_centred_features_have_mean_zero_and_mean_length_one(world):
    images = world.images()
    assert images.centred.dtype == torch.float32
    assert images.centred.mean(dim=0).abs().max() < 1e-6
    assert images.centred.norm(dim=1).mean().item() == pytest.approx(1)
    white = world.features.double() @ images.whitening
    torch.testing.assert_close(images.mean, white.mean(dim=0), atol=1e-6, rtol=1e-6)


def test_a_classifier_gives_the_logits_of_centred_features(world):
    images = world.images()
    weights, bias = (
        torch.randn(*shape, generator=generator(2)).double() for shape in ((C, D), (C,))
    )
    head = Head(weights, bias)
    logits = head.logits(images.centred.double())
    scores = SCALE * images.classifier(head, SCALE).scores(world.features)
    torch.testing.assert_close(scores.double(), logits, atol=1e-4, rtol=1e-4)


def test_whitening_evens_out_variances_and_its_classifier_takes_features_as_they_are():
    draw = generator(3)
    features = torch.randn(300, D, generator=draw) * torch.arange(1, D + 1) + 5
    white = whiten(features.clone())
    spread, even = (x.var(dim=0) for x in (features, white.centred))
    assert 1 < even.max() / even.min() < spread.max() / spread.min()
    head = Head(torch.randn(C, D, generator=draw).double(), torch.zeros(C).double())
    scores = white.classifier(head, 1.0).scores(features).double()
    torch.testing.assert_close(
        scores, head.logits(white.centred.double()), atol=1e-4, rtol=1e-4
    )


def test_images_that_are_all_alike_are_not_told_apart_by_rounding():
    feature = F.normalize(torch.rand(1, 512, generator=generator(0)), dim=1)
    texts = torch.randn(C, 512)
    images = ClipFeatures.of(feature.repeat(1000, 1), texts, SCALE)
    assert not images.centred.any()
    wanted = (SCALE * feature.double() @ texts.double().T).log_softmax(dim=1)
    torch.testing.assert_close(
        images.zero_shot(ALL), wanted.expand(1000, C), atol=1e-4, rtol=1e-4
    )


# --- captions ------------------------------------------------------------------------------------


@pytest.fixture
def captions(world):
    """Votes of N images by U captions; images 0 and 5 have none."""
    draw = generator(4)
    texts = F.normalize(torch.randn(U, D, generator=draw), dim=1)
    row_of = torch.randint(U, (N,), generator=draw)
    row_of[[0, 5]] = U
    return texts, row_of, captions_of(texts, row_of, world.texts)


def test_captions_are_scored_by_cosines_without_class_means(world, captions):
    """Their features are centred over the images, and of length one."""
    texts, row_of, votes = captions
    voting = [i for i in range(N) if i not in (0, 5)]
    assert votes.has.tolist() == [i in voting for i in range(N)]
    mean = texts[row_of[voting]].double().mean(dim=0)
    found, features = votes.probabilities(ALL), votes.text_features(ALL)
    for i in range(N):
        wanted, feature = torch.zeros(C).double(), torch.zeros(D).double()
        if i in voting:
            off = texts[row_of[i]].double() - mean
            wanted, feature = (
                (SCALE * world.texts.double() @ off).softmax(dim=0),
                off / off.norm(),
            )
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(features[i], feature, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(votes.probabilities(slice(4, 9)), found[4:9])


# --- class scores --------------------------------------------------------------------------------


def score_votes_by_least_squares(options, scores):
    """Votes [N, C]: a softmax of scores without the effects of images and of classes."""
    given = options >= 0
    best = scores.masked_fill(~given, -math.inf).amax(dim=1, keepdim=True)
    scores = (scores - best.nan_to_num(0.0, neginf=0.0)).clamp(min=-FLOOR).double()
    rows, columns = given.nonzero().T
    classes = options[rows, columns]
    effects = torch.cat([F.one_hot(rows, N), F.one_hot(classes, C)], dim=1).double()
    values = scores[rows, columns][:, None]
    found = torch.linalg.lstsq(effects, values, driver="gelsd").solution
    rest = torch.full((N, C), -math.inf).double()
    rest[rows, classes] = (values - effects @ found)[:, 0]
    return rest.softmax(dim=1).nan_to_num(0.0)


def some_scores():
    """Options and log-probabilities; image 1 has fewer options, 2 none, 3 and 4 scores of -inf."""
    draw = generator(6)
    options = torch.stack([torch.randperm(C - 1, generator=draw)[:K] for _ in range(N)])
    scores = -5 * torch.rand(N, K, generator=draw)
    options[1, 1:] = -1
    options[2] = -1
    scores[1, 2], scores[2] = torch.nan, 0.0  # where there is no option anything may stand
    scores[3, 0] = -torch.inf
    scores[4] = -torch.inf
    return options, scores


def test_class_scores_vote_without_class_means():
    options, scores = some_scores()
    votes = class_score_votes(options, scores, C, 1.0)
    wanted = score_votes_by_least_squares(options, scores)
    torch.testing.assert_close(votes.probabilities(ALL), wanted, atol=1e-3, rtol=1e-3)
    assert votes.has.tolist() == [i != 2 for i in range(N)]
    assert not wanted[:, C - 1].any()  # the class that is never an option
    rows = torch.tensor([4, 2, 20])
    torch.testing.assert_close(votes.probabilities(rows), votes.probabilities(ALL)[rows])
    assert votes.text_features is None


def test_scores_are_permuted_and_options_are_not():
    options, scores = some_scores()
    votes = class_score_votes(options, scores, C, 1.0)
    rows = torch.tensor([0, 1, 2, 6, 7])
    permuted = votes.permuted(rows)
    own = votes.probabilities(rows)
    torch.testing.assert_close(permuted(torch.arange(5)), own, atol=1e-3, rtol=1e-2)
    swapped = permuted(torch.tensor([3, 4, 0, 0, 1]))
    assert torch.equal(swapped > 0, own > 0)
    # The scores of an image with all options, from its lowest class to its highest.
    given = [own[i][own[i] > 0] for i in range(5)]
    torch.testing.assert_close(swapped[0][own[0] > 0], given[3], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(swapped[3][own[3] > 0], given[0], atol=1e-3, rtol=1e-2)
    # An image with one option lends it, and means beside it.
    last = swapped[4][own[4] > 0]
    torch.testing.assert_close(last, torch.full((K,), 1 / K).double(), atol=1e-3, rtol=1e-2)


def test_class_scores_with_their_means_are_probabilities_of_the_options():
    options, scores = some_scores()
    votes = class_score_votes(options, scores, C).probabilities(ALL)
    for i in (0, 1, 5, N - 1):
        given = options[i] >= 0
        wanted = torch.zeros(C).double()
        wanted[options[i][given]] = scores[i][given].double().softmax(dim=0)
        torch.testing.assert_close(votes[i], wanted, atol=1e-3, rtol=1e-2)
