from collections import Counter

import pytest

from latteclip.captions.requests import draw_groups


def ids(n, start=0):
    return [f"class/{number:04d}.png" for number in range(start, start + n)]


def draw(labels, seed=3, per_class=None):
    return draw_groups(ids(len(labels)), labels, seed, per_class)


def test_every_image_has_a_group_of_four_different_images_of_its_class():
    labels = [0, 1] * 5 + [2] * 30
    groups = draw(labels)
    assert list(groups) == list(range(40))
    for index, members in groups.items():
        assert len(set(members)) == len(members) == 4
        assert {labels[member] for member in members} == {labels[index]}


def test_classes_of_fewer_than_four_are_drawn_with_replacement():
    labels = [5, 8, 8, 8, 5, 9]
    groups = draw(labels)
    for index, members in groups.items():
        assert len(members) == 4
        assert {labels[member] for member in members} == {labels[index]}
    assert groups[5] == [5, 5, 5, 5]


@pytest.mark.parametrize("n", [4, 5, 6])
def test_small_classes_still_give_four_different_images(n):
    for seed in range(20):
        for members in draw([7] * n, seed).values():
            assert len(set(members)) == 4


def test_a_group_seldom_shows_the_image_that_it_is_drawn_for():
    assert not any(index in members for index, members in draw([0] * 40).items())


def test_pairs_of_images_meet_as_chance_has_it():
    n, seeds = 8, 300
    met = Counter()
    for seed in range(seeds):
        for members in draw([0] * n, seed).values():
            met.update((a, b) for a in members for b in members if a < b)
    expected = seeds * n * 6 / (n * (n - 1) / 2)  # six pairs in each of n groups
    assert len(met) == n * (n - 1) / 2
    assert all(abs(times - expected) < 0.2 * expected for times in met.values())


def test_added_images_change_few_groups_of_the_others():
    old, new = ids(300), ids(5, start=1000)
    before = draw_groups(old, [0] * 300, seed=1)
    # They come first, so that every index moves.
    after = draw_groups([*new, *old], [0] * 305, seed=1)
    named_before = {old[i]: [old[m] for m in members] for i, members in before.items()}
    named_after = {[*new, *old][i]: [[*new, *old][m] for m in g] for i, g in after.items()}
    changed = [name for name in old if named_before[name] != named_after[name]]
    assert len(changed) <= 4 * 5 + 4
    assert all(set(named_after[name]) & set(new) for name in changed[:4])


def test_images_of_another_class_change_nothing():
    labels = [0] * 30
    alone = draw_groups(ids(30), labels, 1)
    together = draw_groups(ids(40), [*labels, *[1] * 10], 1)
    assert {i: together[i] for i in alone} == alone


def test_groups_per_class_are_some_of_all_groups():
    labels = [0] * 12 + [1] * 2 + [2] * 7
    everything, some = draw(labels), draw(labels, per_class=3)
    assert Counter(labels[index] for index in some) == {0: 3, 1: 2, 2: 3}
    assert list(some) == sorted(some)
    assert all(everything[index] == members for index, members in some.items())
