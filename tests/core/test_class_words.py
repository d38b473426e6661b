import pytest

from latteclip.core.class_words import ClassWords
from latteclip.core.errors import UserError

CLASSNAMES = ["cat", "dog", "sea lion"]


def test_a_string_and_a_list_of_one_are_the_same():
    assert ClassWords.of("a {}.") == ClassWords.of(["a {}."]) == ClassWords(["a {}."])
    assert ClassWords.of("a {}.").described == {"template": "a {}."}


def test_the_first_template_is_that_of_the_class_descriptions():
    assert ClassWords.of(["a {}.", "the {}."]).template == "a {}."


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
        ([], {}, r"^template is an empty list; give at least one with \{\}"),
        ("a photo", {}, r"^template 'a photo' has no \{\}"),
        (["a {}.", "a photo"], {}, r"^template 'a photo' has no \{\}"),
        (["a {}.", "the {}", "a {}."], {}, r"^template 'a \{\}\.' is given 2 times"),
        ("{}", {"cat": []}, r"^class_synonyms of 'cat' lack a name"),
        ("{}", {"cat": ["kitty", " "]}, r"^class_synonyms of 'cat' lack a name"),
        ("{}", {"cat": ["kitty", "Kitty"]}, r"^class_synonyms has 'kitty' 2 times"),
        ("{}", {"cat": ["pet"], "dog": ["pet"]}, r"^class_synonyms has 'pet' 2 times"),
    ],
    ids=str,
)
def test_words_that_cannot_be_meant_are_one_sentence(template, synonyms, message):
    with pytest.raises(UserError, match=message):
        ClassWords.of(template, synonyms)


@pytest.mark.parametrize(
    ("synonyms", "message"),
    [
        ({"sealion": ["otaria"]}, "'sealion', which is not a class .* did you mean sea lion"),
        ({"cat": ["Dog"]}, "class 'cat' also 'dog', which is the name of a class itself"),
        ({"cat": ["cat"]}, "class 'cat' also 'cat', which is the name of a class itself"),
    ],
    ids=str,
)
def test_synonyms_that_do_not_fit_the_classes_are_one_sentence(synonyms, message):
    with pytest.raises(UserError, match=message):
        ClassWords.of("{}", synonyms).names(CLASSNAMES)
