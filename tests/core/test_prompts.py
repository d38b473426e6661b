import pytest

from latteclip.core.errors import UserError
from latteclip.core.prompts import class_texts, clean_classname, clean_classnames

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
