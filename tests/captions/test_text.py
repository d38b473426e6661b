import pytest

from latteclip.captions.text import clean


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
