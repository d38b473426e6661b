import dataclasses

import pytest

from latteclip.captions.answers import Identity, digest
from latteclip.captions.groups import draw_groups
from latteclip.captions.pictures import Layout

IDENTITY = Identity("m", None, "auto", None, 77, Layout())


# --- digests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Identity)])
def test_whatever_changes_the_answer_changes_the_digest(field):
    other = dataclasses.replace(IDENTITY, **{field: Layout(max_side=100)})
    assert digest([b"picture"], "What?", other) != digest([b"picture"], "What?", IDENTITY)


# --- shards --------------------------------------------------------------------------------------


# --- groups --------------------------------------------------------------------------------------


def ids(n, start=0):
    return [f"class/{number:04d}.png" for number in range(start, start + n)]


def draw(labels, seed=3):
    return draw_groups(ids(len(labels)), labels, seed)


@pytest.mark.parametrize("seed", range(20))
def test_every_image_has_a_group_of_four_different_images_of_its_class(seed):
    labels = [0, 1] * 5 + [2] * 30 + [3] * 4 + [4] * 6 + [5, 6, 6]
    groups = draw(labels, seed)
    assert list(groups) == list(range(53))
    for index, members in groups.items():
        assert len(members) == 4
        assert {labels[member] for member in members} == {labels[index]}
        assert len(set(members)) == 4 or labels[index] > 4  # of fewer, with replacement
        assert index not in members or labels[index] != 2  # of many, seldom itself


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
