import pytest

from latteclip.core.class_templates import ClassTemplates, clean_classname, clean_classnames
from latteclip.core.errors import UserError


@pytest.mark.parametrize(
    ("name", "replace", "clean"),
    [
        ("Annual_Crop Land", {"_": " "}, "annual crop land"),
        ("  two   spaces\t", {}, "two spaces"),
        ("AnnualCrop", {"AnnualCrop": "Annual Crop Land"}, "annual crop land"),
    ],
)
def test_a_class_name_is_cleaned(name, replace, clean):
    assert clean_classname(name, replace) == clean


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_b", "c", "A b"], "'a_b' and 'A b' .*'a b'"),
        (["x", "_"], "'_'"),
        (["only"], "only"),
    ],
)
def test_names_that_cannot_stand_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        clean_classnames(names, {"_": " "})


def test_templates_and_names_come_back_from_metadata():
    words = ClassTemplates(
        ["a {}.", "the {}."], {"sea lion": ["otaria"]}, {"t-shirt": "T-Shirt"}
    )
    assert ClassTemplates.described_by(words.described) == words
    assert words.as_written(["cat", "t-shirt"]) == ["cat", "T-Shirt"]
    assert ClassTemplates.described_by({"template": "a {}."}) == ClassTemplates.of("a {}.")


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({}, "templates"),
        ({"template": "a {}.", "written_names": {"t-shirt": 5}}, "written"),
        ({"template": "a {}.", "class_synonyms": ["net"]}, "synonyms"),
    ],
    ids=str,
)
def test_metadata_of_a_foreign_model_are_checked(metadata, key):
    with pytest.raises(UserError, match=key):
        ClassTemplates.described_by(metadata)


def test_synonyms_follow_the_names_with_the_rows_of_their_classes():
    words = ClassTemplates.of("{}", {"Sea  Lion": ["Otaria"], "cat": ["kitty"]})
    named = [("cat", 0), ("dog", 1), ("sea lion", 2), ("otaria", 2), ("kitty", 0)]
    assert words.names(["cat", "dog", "sea lion"]) == named


@pytest.mark.parametrize(
    ("template", "synonyms", "message"),
    [
        ([], {}, "template"),
        (["a {}.", "a photo"], {}, "a photo"),
        ("{}", {"cat": []}, "cat"),
        ("{}", {"cat": ["pet"], "dog": ["pet"]}, "pet"),
        ("{}", {"sealion": ["otaria"]}, "sealion.*sea lion"),
        ("{}", {"cat": ["Dog"]}, "cat.*dog"),
    ],
    ids=str,
)
def test_words_that_cannot_be_meant_are_one_sentence(template, synonyms, message):
    with pytest.raises(UserError, match=message):
        ClassTemplates.of(template, synonyms).names(["cat", "dog", "sea lion"])
