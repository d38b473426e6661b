import pytest

from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError


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
