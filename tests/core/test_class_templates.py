import pytest

from latteclip.core.class_templates import (
    ClassTemplates,
    class_texts,
    clean_classname,
    clean_classnames,
)
from latteclip.core.errors import UserError

UNDERSCORES = {"_": " "}


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("polka-dotted", "polka-dotted"),
        ("Annual_Crop Land", "annual crop land"),
        ("  two   spaces\t", "two spaces"),
        ("car/truck", "car/truck"),
        ("ÉCLAIR", "éclair"),
    ],
)
def test_a_class_name_is_cleaned(name, clean):
    assert clean_classname(name, UNDERSCORES) == clean


def test_replacements_are_made_before_lower_case():
    assert clean_classname("AnnualCrop", {"AnnualCrop": "Annual Crop Land"}) == "annual crop land"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_b", "c", "A b"], "'a_b' and 'A b' are both 'a b'"),
        (["x", "_"], "'_' is empty"),
        (["only"], "at least two classes"),
        ([], "at least two classes"),
    ],
)
def test_names_that_cannot_stand_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        clean_classnames(names, UNDERSCORES)


def test_class_texts_fill_the_template_in_order():
    assert class_texts("a {}.", ["x", "y z"]) == ["a x.", "a y z."]


CLASSNAMES = ["cat", "dog", "sea lion"]


def test_words_come_back_from_metadata():
    words = ClassTemplates.of(["a {}.", "the {}."], {"Sea  Lion": ["Otaria"]})
    assert words.described == {
        "template": "a {}.",
        "templates": ["a {}.", "the {}."],
        "class_synonyms": {"sea lion": ["otaria"]},
    }
    assert ClassTemplates.described_by(words.described) == words
    assert ClassTemplates.described_by({"template": "a {}."}) == ClassTemplates.of("a {}.")


def test_names_as_they_were_written_come_back_from_metadata():
    words = ClassTemplates(["a {}."], written={"t-shirt": "T-Shirt"})
    back = ClassTemplates.described_by(words.described)
    assert back == words
    assert back.as_written(["cat", "t-shirt"]) == ["cat", "T-Shirt"]
    for wrong in ("T-Shirt", ["T-Shirt"], {"t-shirt": 5}):
        with pytest.raises(UserError, match="written_names"):
            ClassTemplates.described_by({"template": "a {}.", "written_names": wrong})


def test_own_names_come_first_and_synonyms_have_the_rows_of_their_classes():
    words = ClassTemplates.of("{}", {"sea lion": ["otaria"], "cat": ["kitty", "puss"]})
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
        ClassTemplates.of(template, synonyms)


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
        ClassTemplates.of("{}", synonyms).names(CLASSNAMES)
