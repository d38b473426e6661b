import pytest

from latteclip.captions.clean import clean


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" A red\n\n  texture. \t", "A red texture."),
        ('"A red texture."', "A red texture."),
        ("\u201cA red texture.\u201d", "A red texture."),
        ("**A red texture.**", "A red texture."),
        ("Sure, here is a description of the photo: A red texture.", "A red texture."),
        ('Sure! Here\'s a concise description:\n\n"A red texture."', "A red texture."),
        ("Certainly! A red texture.", "A red texture."),
        ("Here are the common attributes: red, rough.", "red, rough."),
        ("ASSISTANT: A red texture.", "A red texture."),
        ("Caption: 'A red texture.'", "A red texture."),
        ("A red texture.</s>", "A red texture."),
        ("<|im_end|>", ""),
        ("A red textur\ufffd\ufffd", "A red textur"),
        ("A\x00 red\x07 texture\x1b[2J\x9b.", "A red texture [2J ."),
        ('""', ""),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_what_is_no_caption_goes(text, caption):
    assert clean(text) == caption


@pytest.mark.parametrize(
    "caption",
    [
        'A "red" texture with "holes"',
        '"Red" and "blue"',
        "The photo shows here: nothing",
        "Here is a cat.",
        "Surely a texture.",
        "It's the artist's cloth",
        "Sure",
        "Description",
        "2 * 3 dots",
    ],
)
def test_what_belongs_to_the_caption_stays(caption):
    assert clean(caption) == caption


def test_cleaning_twice_changes_nothing():
    for text in ("Sure, here is: Sure, here is: 'x'", '"""x"""', "Answer: Caption: **x**"):
        assert clean(clean(text)) == clean(text)
