import re

import numpy as np
import pytest

from latteclip.captions.caption import clean
from latteclip.captions.text import mentions


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" A red\n\n  texture. \t", "A red texture."),
        ("\u201cA red texture.\u201d", "A red texture."),
        ("**A red texture.**", "A red texture."),
        ('Sure! Here\'s a concise description:\n\n"A red texture."', "A red texture."),
        ("ASSISTANT: A red texture.", "A red texture."),
        ("A red texture.</s>", "A red texture."),
        ("A red textur\ufffd\ufffd", "A red textur"),
        ("A\x00 red\x07 texture\x1b[2J\x9b.", "A red texture [2J ."),
        ('""', ""),
    ],
)
def test_what_is_no_caption_goes(text, caption):
    assert clean(text) == caption


@pytest.mark.parametrize(
    "caption",
    [
        'A "red" texture with "holes"',
        "The photo shows here: nothing",
        "Here is a cat.",
        "It's the artist's cloth",
        "Sure",
    ],
)
def test_what_belongs_to_the_caption_stays(caption):
    assert clean(caption) == caption


def test_class_names_are_found_as_if_each_were_looked_for():
    draw = np.random.default_rng(0)
    letters = ["a", "b", "C", " ", ".", "-", "é", "("]

    def words(n, longest):
        drawn = (draw.choice(letters, draw.integers(1, longest + 1)) for _ in range(n))
        return ["".join(each).strip() for each in drawn]

    names = list(dict.fromkeys(filter(None, words(60, 6))))
    plain = [re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE) for name in names[5:]]
    names_a_class = mentions(names[5:])
    found = [(names_a_class(text), any(p.search(text) for p in plain)) for text in words(500, 9)]
    assert {one for one, _ in found} == {True, False}
    assert all(one == other for one, other in found)
