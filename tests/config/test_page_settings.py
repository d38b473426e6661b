import pytest

from latteclip.config import page_settings


@pytest.mark.parametrize(
    ("methods", "main", "paper"),
    [
        ("zero_shot,latteclip,flyp_supervised", "latteclip", "latteclip"),
        ("latteclip_no_captions,flyp", "flyp", None),
        ("zero_shot,flyp,label_propagation", "flyp", None),
        ("zero_shot", "zero_shot", None),
    ],
)
def test_the_methods_that_have_a_part_of_their_own(configured, methods, main, paper):
    found = configured(method=methods)
    assert page_settings.main_method(found, "demo") == main
    assert page_settings.paper_method(found, "demo") == paper
