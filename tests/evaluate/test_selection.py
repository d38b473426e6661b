import math

import numpy as np
import pytest

from latteclip.core.errors import UserError
from latteclip.evaluate.selection import Candidate, Judge, choose, rank_correlation, reason

N, C = 40, 5
OBJECTIVES = {"flyp_fused": "flyp", "latteclip_fused": "latteclip"}


def candidate(method, seed=0, marks=()):
    from_votes = method == "image_prototypes" or method.endswith("_fused")
    return Candidate(method, seed, OBJECTIVES.get(method, method), marks, from_votes)


def candidates(*methods):
    return [candidate(method) for method in methods]


def judge(*hits):
    """Hard votes of N images: candidate k has the class of the vote for those in hits[k]."""
    votes = np.eye(C)[np.zeros(N, dtype=int)]
    predictions = [np.where(np.isin(np.arange(N), list(own)), 0, 1) for own in hits]
    return Judge.of(votes, predictions)


def chosen(methods, *hits):
    named = candidates(*methods)
    return named[choose(named, judge(*hits))].method


def test_the_agreement_is_the_votes_probability_of_the_predicted_class():
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(C), N)
    predictions = rng.integers(0, C, (3, N))
    found = Judge.of(votes, list(predictions))
    own = [sum(votes[i][predictions[k][i]] for i in range(N)) / N for k in range(3)]
    for k in range(3):
        assert found.agreement(k, 0) == pytest.approx(own[k])
        assert found.means(k, 1) == pytest.approx((own[k], own[1]))


def test_a_lead_is_a_mean_difference_with_the_standard_error_of_pairs():
    rng = np.random.default_rng(1)
    found = Judge(rng.random((2, N)))
    differences = [a - b for a, b in zip(*found.agreements, strict=True)]
    mean = sum(differences) / N
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (N - 1))
    assert found.lead(0, 1) == pytest.approx((mean, spread / math.sqrt(N), N))


def few(agreements, n):
    """A judge by whom the last candidate was judged by the first n images alone."""
    agreements = np.array(agreements, dtype=float)
    agreements[-1, n:] = np.nan
    return Judge(agreements)


def test_what_fewer_images_judged_is_compared_on_these_alone():
    rng = np.random.default_rng(2)
    values = rng.random((2, N))
    found = few(values, 25)
    assert found.lead(1, 0) == pytest.approx(Judge(values[:, :25]).lead(1, 0))
    assert found.means(0, 1) == pytest.approx((values[0, :25].mean(), values[1, :25].mean()))
    wanted = values[0].mean() + (values[1, :25] - values[0, :25]).mean()
    assert found.agreement(1, 0) == pytest.approx(wanted)


@pytest.mark.parametrize(("n", "judges"), [(0, False), (1, False), (19, False), (20, True)])
def test_few_images_judge_nothing(n, judges):
    found = few(np.stack([np.zeros(N), np.ones(N)]), n)
    assert found.judges(1) == judges
    assert found.lead(1, 0).is_clear == judges
    named = candidates("zero_shot", "latteclip")
    assert choose(named, found) == int(judges)
    if not judges:
        assert reason(named, 0, found) == (
            "zero_shot is the only one that can be chosen by votes; nothing was left out that "
            "could judge what was trained."
        )


def test_where_few_images_judge_training_many_judge_the_others():
    """The 20 held-out images cannot tell zero-shot from prototypes, but all 40 can."""
    named = candidates("zero_shot", "image_prototypes", "latteclip")
    zero_shot, prototypes = np.zeros(N), np.zeros(N)
    prototypes[20:] = 1
    trained = np.zeros(N)
    trained[:1] = 1
    assert choose(named, few([zero_shot, prototypes, trained], 20)) == 1
    trained[:5] = 1
    assert choose(named, few([zero_shot, prototypes, trained], 20)) == 2


def test_a_clear_winner_is_chosen_whatever_its_kind():
    methods = ("zero_shot", "image_prototypes", "latteclip")
    assert chosen(methods, range(30), range(10), range(10)) == "zero_shot"
    assert chosen(methods, range(10), range(30), range(10)) == "image_prototypes"
    assert chosen(methods, range(10), range(10), range(30)) == "latteclip"


@pytest.mark.parametrize("order", [1, -1])
def test_within_a_standard_error_the_simpler_one_is_chosen(order):
    # One image more is one standard error exactly: no lead.
    methods = ("zero_shot", "zero_shot_calibrated", "image_prototypes", "flyp")[::order]
    hits = {"zero_shot": 20, "zero_shot_calibrated": 29, "image_prototypes": 30, "flyp": 30}
    assert chosen(methods, *(range(hits[name]) for name in methods)) == "zero_shot_calibrated"


def test_differences_are_paired_so_that_few_images_can_decide():
    # Four images more, all others alike: twice the standard error. The same four among many swaps
    # are a fraction of it.
    methods = ("zero_shot", "image_prototypes")
    assert chosen(methods, range(16), range(20)) == "image_prototypes"
    assert chosen(methods, range(16), range(16, 36)) == "zero_shot"


def test_of_equally_simple_ones_that_which_agrees_most_is_chosen():
    methods = ("zero_shot", "flyp_fused", "latteclip_fused")
    assert chosen(methods, range(10), range(29), range(30)) == "latteclip_fused"
    assert chosen(methods, range(10), range(30), range(29)) == "flyp_fused"
    seeds = [candidate("zero_shot"), *(candidate("latteclip", seed) for seed in (3, 1, 2))]
    found = seeds[choose(seeds, judge(range(10), range(28), range(30), range(29)))]
    assert found.seed == 1


def test_a_trained_one_must_lead_calibrated_zero_shot_by_more_than_a_standard_error():
    named = candidates("zero_shot", "zero_shot_calibrated", "latteclip")
    # It leads zero-shot clearly, and calibrated zero-shot only by chance.
    found = judge(range(5), range(20), range(14, 36))
    assert named[choose(named, found)].method == "zero_shot_calibrated"
    without = candidates("zero_shot", "flyp", "latteclip")
    assert without[choose(without, judge(range(20), range(14, 36), range(3)))].method == "zero_shot"


def test_a_trained_one_must_lead_prototypes_by_more_than_a_standard_error():
    named = candidates("latteclip", "zero_shot", "zero_shot_calibrated", "image_prototypes")
    assert choose(named, judge(range(31), range(5), range(6), range(30))) == 3
    assert choose(named, judge(range(32), range(5), range(6), range(30))) == 0


def test_a_trained_one_must_lead_plain_zero_shot_too():
    named = candidates("zero_shot", "zero_shot_calibrated", "image_prototypes", "latteclip")
    assert choose(named, judge(range(20), range(5), range(21), range(17, 40))) == 0
    assert choose(named, judge(range(5), range(5), range(17, 21), range(17, 40))) == 3


def test_training_on_votes_that_proved_good_is_believed_unless_it_clearly_lost():
    """One image less is one standard error exactly: no loss. Two are."""
    named = candidates("zero_shot", "image_prototypes", "flyp_fused")
    assert choose(named, judge(range(10), range(30), range(29))) == 2
    assert choose(named, judge(range(10), range(30), range(28))) == 1
    # What did not learn from votes has no such credit, nor has what is no better than zero-shot.
    others = candidates("zero_shot", "image_prototypes", "flyp")
    assert choose(others, judge(range(10), range(30), range(29))) == 1
    assert choose(named, judge(range(10), range(30), range(14, 40))) == 2
    assert choose(named, judge(range(26), range(30), range(14, 40))) == 1


def test_votes_that_did_not_prove_better_than_zero_shot_give_no_credit():
    named = candidates("zero_shot", "image_prototypes", "flyp_fused")
    assert choose(named, judge(range(20), range(21), range(21))) == 0


def test_seeds_are_judged_together_and_the_best_of_them_is_taken():
    named = [
        *candidates("zero_shot", "image_prototypes"),
        *(candidate("flyp", seed) for seed in range(3)),
        *(candidate("latteclip", seed) for seed in range(3)),
    ]
    # One seed of flyp is the best of all, and latteclip is better on the average.
    flyp, latteclip = (range(36), range(20), range(20)), (range(33), range(34), range(33))
    found = judge(range(10), range(30), *flyp, *latteclip)
    assert choose(named, found) == 6
    assert reason(named, 6, found) == (
        "latteclip agrees with 83.3 % of 40 votes that it did not learn from, zero_shot with "
        "25.0 %; of its 3 seeds 1 agrees most."
    )


def test_a_seed_that_collapsed_does_not_count():
    named = [*candidates("zero_shot"), candidate("flyp", 0, ("collapsed",)), candidate("flyp", 1)]
    assert choose(named, judge(range(10), range(0), range(20))) == 2


def test_nothing_is_better_than_zero_shot_and_the_reason_says_so():
    named = candidates("zero_shot", "zero_shot_calibrated", "latteclip")
    found = judge(range(20), range(12), range(8))
    assert choose(named, found) == 0
    assert reason(named, 0, found) == (
        "zero_shot agrees with 50.0 % of 40 votes that it did not learn from, "
        "zero_shot_calibrated with 30.0 %: nothing here beat it."
    )


def test_what_collapsed_or_saw_labels_is_never_chosen():
    named = [
        candidate("zero_shot"),
        candidate("flyp_supervised", marks=("supervised",)),
        candidate("latteclip", marks=("collapsed",)),
        candidate("image_prototypes", marks=("ours",)),
    ]
    found = judge(range(10), range(40), range(40), range(20))
    assert named[choose(named, found)].method == "image_prototypes"
    assert "flyp_supervised" not in reason(named, 3, found)
    assert "latteclip" not in reason(named, 3, found)


def test_where_all_collapsed_one_of_them_is_chosen_and_none_that_saw_labels():
    named = [
        candidate("flyp_supervised", marks=("supervised",)),
        candidate("latteclip", 0, ("collapsed",)),
        candidate("latteclip", 1, ("collapsed",)),
    ]
    assert choose(named, judge(range(40), range(10), range(12))) == 2
    with pytest.raises(UserError, match="saw labels"):
        choose(named[:1], judge(range(40)))


@pytest.mark.parametrize(
    ("methods", "wanted"),
    [
        (("latteclip", "zero_shot", "image_prototypes", "zero_shot_calibrated"), 3),
        (("latteclip", "image_prototypes", "zero_shot"), 2),
        (("latteclip", "image_prototypes"), 1),
        (("latteclip", "flyp"), 0),
    ],
)
def test_without_a_judge_the_safest_is_chosen(methods, wanted):
    named = candidates(*methods)
    assert choose(named, "nobody was asked") == wanted
    assert reason(named, wanted, "nobody was asked") == (
        f"{methods[wanted]} is taken as the safest, for nothing judges: nobody was asked."
    )


def test_the_reason_names_the_winner_beside_zero_shot():
    named = candidates("zero_shot", "flyp", "image_prototypes")
    found = judge(range(10), range(15), range(30))
    assert reason(named, choose(named, found), found) == (
        "image_prototypes agrees with 75.0 % of 40 votes that it did not learn from, zero_shot "
        "with 25.0 %."
    )


def test_the_reason_names_a_rival_that_does_not_lead_enough():
    named = [candidate("zero_shot_calibrated"), candidate("flyp", 0), candidate("flyp", 1)]
    found = judge(range(20), range(14, 36), range(14, 36))
    assert reason(named, choose(named, found), found) == (
        "zero_shot_calibrated agrees with 50.0 % of 40 votes that it did not learn from, flyp "
        "with 55.0 %, whose lead over zero_shot_calibrated, 5.0 points, is within a standard "
        "error, 13.8."
    )


def test_the_reason_names_what_a_trained_rival_had_to_lead():
    named = candidates("zero_shot", "zero_shot_calibrated", "latteclip")
    # All of zero-shot's hits and two more; calibrated zero-shot's are others.
    found = judge(range(18, 38), range(19), range(17, 40))
    assert named[choose(named, found)].method == "zero_shot"
    assert reason(named, 0, found).startswith(
        "zero_shot agrees with 50.0 % of 40 votes that it did not learn from, latteclip with "
        "57.5 %, whose lead over zero_shot_calibrated, 10.0 points, is within a standard error, "
    )


def test_the_rank_correlation_is_spearman_s():
    assert rank_correlation([0.1, 0.2, 0.3, 0.4], [1.0, 3.0, 2.0, 9.0]) == pytest.approx(0.8)
    assert rank_correlation([0.1, 0.2], [9.0, 3.0]) == pytest.approx(-1)
    assert rank_correlation([0.1, 0.1], [9.0, 3.0]) is None
