import pytest

from latteclip.core.class_templates import ClassTemplates, clean_classnames
from latteclip.core.errors import UserError


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_b", "c", "A b"], "'a_b' and 'A b' .*'a b'"),
        (["x", "_"], "'_'"),
        (["only"], "only"),
        (["caf\u00e9", "cafe\u0301"], "café"),  # as Linux and macOS write a folder
    ],
)
def test_names_that_cannot_stand_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        clean_classnames(names, {"_": " "})


@pytest.mark.parametrize(
    ("synonyms", "message"),
    [
        ({"cat": []}, "cat"),
        ({"cat": ["pet"], "dog": ["pet"]}, "pet"),
        ({"sealion": ["otaria"]}, "sealion.*sea lion"),
        ({"cat": ["Dog"]}, "cat.*dog"),
    ],
    ids=str,
)
def test_words_that_cannot_be_meant_are_one_sentence(synonyms, message):
    with pytest.raises(UserError, match=message):
        ClassTemplates.of("{}", synonyms).names(["cat", "dog", "sea lion"])
