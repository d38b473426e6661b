import pytest

from latteclip.deploy.export_labels import UniqueFilenames, sanitized


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("dots", "dots"),
        ("f-16 a/b", "f-16 a_b"),
        ("..", "_"),
        ("", "_"),
        (".hidden", "_hidden"),
        ("con", "_con"),
        ("Aux.txt", "_Aux.txt"),
        ("a\n?b", "a__b"),
        ("end. ", "end"),
        ("größe.JPG", "größe.JPG"),
    ],
)
def test_a_name_is_one_that_every_system_takes(name, wanted):
    assert sanitized(name) == wanted


@pytest.mark.parametrize("name", ["ü" * 300 + ".png", "." + "y" * 400])
def test_a_long_name_is_cut_and_keeps_its_suffix(name):
    found = sanitized(name)
    assert len(found.encode()) <= 200
    assert found.endswith(".png") == name.endswith(".png")


def test_many_equal_names_take_a_step_each():
    """Counting from the first number each time, it would take ten minutes."""
    names = UniqueFilenames()
    found = [names.new("image.png") for _ in range(20_000)]
    assert len(set(found)) == 20_000
    assert found[-1] == "image_20000.png"


def test_names_that_would_be_the_same_get_numbers():
    names = UniqueFilenames()
    given = [names.new(name) for name in ("a/b", "a:b", "A_B")]
    assert given == ["a_b", "a_b_2", "A_B_3"]
    given = [names.new(name) for name in ("x.png", "x.png", "X.png")]
    assert given == ["x.png", "x_2.png", "X_3.png"]
