import descriptions
import generate_textures as textures
import pytest
from generate_textures import Attributes


def attributes(classname="striped", **changes):
    values = {
        "foreground": "red",
        "background": "white",
        "size": "fine",
        "orientation": "diagonal",
        "finish": "crisp",
    }
    return Attributes(classname=classname, **(values | changes))


def test_image_descriptions_tell_the_attributes():
    assert descriptions.describe(attributes()) == (
        "a striped texture with thin diagonal red stripes on a white background, crisp."
    )
    plain = attributes("dotted", orientation=None, size="coarse", finish="soft")
    assert descriptions.describe(plain) == (
        "a dotted texture with large red dots on a white background, soft."
    )


def test_descriptions_name_every_drawn_attribute():
    for a in textures.generate(100, 0.7, 5)[1]:
        text = descriptions.describe(a)
        told = [a.classname, a.foreground, a.background, a.orientation or "", a.finish]
        assert all(word in text for word in told)
        assert len(text.split()) < 20
        captions = descriptions.short_captions(a)
        assert text in captions
        colours = {a.foreground, a.background}
        for caption in captions:
            assert set(caption.strip(".").split()) & set(textures.COLOURS) <= colours


@pytest.mark.parametrize(
    ("classnames", "start"),
    [
        ("dotted dotted dotted dotted", "dotted textures"),
        ("dotted dotted dotted grid", "mostly dotted textures"),
        ("dotted grid dotted woven", "partly dotted textures"),
        ("woven grid woven grid", "grid and woven textures"),
        ("dotted grid woven marbled", "various textures"),
    ],
)
def test_group_descriptions_say_how_common_the_class_is(classnames, start):
    group = [attributes(name, orientation=None) for name in classnames.split()]
    assert descriptions.describe_group(group).startswith(start)
