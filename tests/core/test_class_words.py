import pytest

from latteclip.core.class_words import ClassWords
from latteclip.core.errors import UserError

CLASSNAMES = ["cat", "dog", "sea lion"]


def test_words_come_back_from_metadata():
    words = ClassWords.of(["a {}.", "the {}."], {"Sea  Lion": ["Otaria"]})
    assert words.described == {
        "template": "a {}.",
        "templates": ["a {}.", "the {}."],
        "class_synonyms": {"sea lion": ["otaria"]},
    }
    assert ClassWords.described_by(words.described) == words
    assert ClassWords.described_by({"template": "a {}."}) == ClassWords.of("a {}.")


def test_names_as_they_were_written_come_back_from_metadata():
    words = ClassWords(["a {}."], written={"t-shirt": "T-Shirt"})
    back = ClassWords.described_by(words.described)
    assert back == words
    assert back.as_written(["cat", "t-shirt"]) == ["cat", "T-Shirt"]
    for wrong in ("T-Shirt", ["T-Shirt"], {"t-shirt": 5}):
        with pytest.raises(UserError, match="written_names"):
            ClassWords.described_by({"template": "a {}.", "written_names": wrong})


def test_own_names_come_first_and_synonyms_have_the_rows_of_their_classes():
    words = ClassWords.of("{}", {"sea lion": ["otaria"], "cat": ["kitty", "puss"]})
    assert words.names(CLASSNAMES) == [
        ("cat", 0),
        ("dog", 1),
        ("sea lion", 2),
        ("otaria", 2),
        ("kitty", 0),
        ("puss", 0),
    ]


@pytest.mark.parametrize(
    ("template", "synonyms", "message"),
    [
        ([], {}, "template"),
        (["a {}.", "a photo"], {}, "a photo"),
        (["a {}.", "the {}", "a {}."], {}, r"a \{\}\."),
        ("{}", {"cat": []}, "cat"),
        ("{}", {"cat": ["pet"], "dog": ["pet"]}, "pet"),
    ],
    ids=str,
)
def test_words_that_cannot_be_meant_are_one_sentence(template, synonyms, message):
    with pytest.raises(UserError, match=message):
        ClassWords.of(template, synonyms)


@pytest.mark.parametrize(
    ("synonyms", "message"),
    [
        ({"sealion": ["otaria"]}, "sealion.*sea lion"),
        ({"cat": ["Dog"]}, "cat.*dog"),
    ],
    ids=str,
)
def test_synonyms_that_do_not_fit_the_classes_are_one_sentence(synonyms, message):
    with pytest.raises(UserError, match=message):
        ClassWords.of("{}", synonyms).names(CLASSNAMES)
