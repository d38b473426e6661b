import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from latteclip.captions import requests
from latteclip.captions.pictures import Layout, lay_out
from latteclip.captions.requests import (
    Choices,
    Identity,
    Questions,
    Shard,
    digest,
    digest_of_images,
    draw_groups,
    fingerprint,
    shard_of,
)
from latteclip.core.errors import UserError

IDENTITY = Identity("m", None, "auto", None, 77, Layout())


# --- digests -------------------------------------------------------------------------------------


def test_choices_and_their_kind_count():
    images = digest_of_images([b"picture"])
    choices = [
        *(None, Choices("multiple_choice", ("A", "B")), Choices("likelihood", ("A", "B"))),
        *(Choices("multiple_choice", ("A", "B", "C")), Choices("multiple_choice", ("B", "A"))),
    ]
    assert len({digest(images, 1, "What?", IDENTITY, each) for each in choices}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"revision": "abc"},
        {"dtype": "float32"},
        {"quantization": "awq"},
        {"max_new_tokens": 78},
        {"temperature": 0.5},
        {"special_tokens": "some rule"},
        {"layout": Layout(max_side=100)},
        {"layout": Layout("grid", 672, 20)},
        {"layout": Layout("multi_image")},
        {"layout": Layout(square=336)},
    ],
    ids=str,
)
def test_whatever_changes_the_answer_changes_the_digest(change):
    images = digest_of_images([b"picture"])
    other = dataclasses.replace(IDENTITY, **change)
    assert digest(images, 1, "What?", other) != digest(images, 1, "What?", IDENTITY)


def test_image_bytes_their_order_and_the_prompt_count():
    a, b = b"a", b"b"
    asked = {
        digest(digest_of_images(contents), len(contents), prompt, IDENTITY)
        for contents in ([a], [b], [a, b], [b, a], [a, a], [a, b, a])
        for prompt in ("What?", "Where?")
    }
    assert len(asked) == 6 * 2


def test_a_model_folder_goes_by_its_content_wherever_it_is(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(bytes(1000))
    first = fingerprint(str(tmp_path / "one"))
    assert fingerprint(str(tmp_path / "two")) == first
    (tmp_path / "two" / "model.safetensors").write_bytes(bytes(999) + b"x")
    assert fingerprint(str(tmp_path / "two")) != first


def test_large_files_count_by_samples_of_their_content(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "HASHED_WHOLE", 1000)
    monkeypatch.setattr(requests, "SAMPLE", 10)
    weights = tmp_path / "model.safetensors"
    seen = set()
    for content in (bytes(5000), bytes(5001), b"x" * 5000, bytes(4999) + b"x"):
        weights.write_bytes(content)
        seen.add(fingerprint(str(tmp_path)))
    assert len(seen) == 4


# --- shards --------------------------------------------------------------------------------------


def test_the_shard_of_an_image_does_not_depend_on_other_images():
    names = [f"{number}.png" for number in range(1000)]
    counts = [sum(Shard(number, 4).has(name) for name in names) for number in range(1, 5)]
    assert sum(counts) == 1000
    assert all(abs(count - 250) < 60 for count in counts)
    assert shard_of("7.png", 4) == shard_of("7.png", 4)


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b"])
def test_a_shard_that_cannot_be_is_refused(text):
    with pytest.raises(UserError, match=text):
        Shard.parse(text)


# --- pixels of a request -------------------------------------------------------------------------

SIZES = np.array([(300, 200), (60, 100), (1000, 800), (10, 3000)])


@pytest.mark.parametrize(
    ("layout", "n_images"),
    [
        (Layout(), 1),
        (Layout(max_side=600), 1),
        (Layout(square=336), 1),
        (Layout("grid", canvas=128, gap=4, max_side=600), 4),
        (Layout("grid", canvas=128, gap=4, square=336), 4),
        (Layout("multi_image", max_side=600), 4),
        (Layout("multi_image", square=336), 4),
    ],
)
def test_no_request_shows_more_pixels_than_the_maximum(layout, n_images):
    names = pa.chunked_array([["a", "b", "c", "d"]])
    members = np.arange(4).reshape(-1, n_images)
    ids = [str(number) for number in range(len(members))]
    questions = Questions(ids, members, names, names, SIZES, None, lambda _: "?", layout)
    images = [Image.new("RGB", (w, h)) for w, h in SIZES.tolist()]
    if layout.max_side:
        for image in images:
            image.thumbnail((layout.max_side, layout.max_side))
    pictures = [lay_out([images[i] for i in row], layout) for row in members]
    assert {len(each) for each in pictures} == {questions.n_pictures}
    pixels = max(sum(p.width * p.height for p in each) for each in pictures)
    at_most = questions.n_pictures if n_images > 1 else 1  # all are as large as the largest
    assert pixels <= questions.max_pixels <= at_most * pixels


# --- groups --------------------------------------------------------------------------------------


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
