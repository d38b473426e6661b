"""Truthful texts about textures, composed from their attributes.

`describe` and `describe_group` are what the demo's captioner learns to write; `short_captions`
are the alt texts that the demo's CLIP is pre-trained on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from generate_textures import COLOURS, Attributes

NOUNS = {
    "banded": "bands",
    "bubbly": "bubbles",
    "chequered": "squares",
    "cobwebbed": "threads",
    "cracked": "cracks",
    "crosshatched": "strokes",
    "dotted": "dots",
    "grid": "lines",
    "honeycombed": "hexagons",
    "marbled": "veins",
    "spiralled": "spirals",
    "striped": "stripes",
    "woven": "strands",
    "zigzagged": "zigzags",
}
CELLULAR = ("bubbly", "chequered", "cobwebbed", "cracked", "dotted", "honeycombed")
_LINE_SIZES = {"fine": "thin", "medium": "medium", "coarse": "wide"}
_CELL_SIZES = {"fine": "small", "medium": "medium", "coarse": "large"}
SHORT_TEMPLATES = (
    "a photo of a {classname} texture.",
    "a photo of a {classname} texture.",
    "a {classname} texture.",
    "{classname} texture.",
    "a {classname} pattern.",
    "{classname}",
    "a close-up of a {classname} surface.",
    "a {foreground} {classname} texture.",
    "a {finish} photo of a {classname} texture.",
    "{size} {orientation} {foreground} {noun} on a {background} background.",
    "a photo of {orientation} {foreground} {noun}.",
    "{classname} {foreground} and {background} pattern.",
    "a {background} {classname} surface with {foreground} {noun}.",
    "a {classname} texture with {size} {noun}.",
    "a {classname} texture with {size} {orientation} {foreground} {noun}.",
    "{classname} textures with {size} {orientation} {tone} {noun} on {ground} backgrounds.",
    "mostly {classname} textures with {orientation} {noun}, {finish}.",
    "{classname} textures with {tone} patterns on {ground} backgrounds, {finish}.",
)


def size_word(attributes: Attributes) -> str:
    """Return thin or wide for lines, small or large for cells."""
    sizes = _CELL_SIZES if attributes.classname in CELLULAR else _LINE_SIZES
    return sizes[attributes.size]


def tone(colour: str) -> str:
    """Return whether a colour looks dark or light."""
    red, green, blue = COLOURS[colour]
    return "light" if 0.3 * red + 0.59 * green + 0.11 * blue > 120 else "dark"


def _words(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def describe(attributes: Attributes) -> str:
    """Return an image description.

    E.g. "a striped texture with thin diagonal red stripes on a white background, crisp."
    """
    noun = NOUNS[attributes.classname]
    pattern = _words(
        size_word(attributes), attributes.orientation, attributes.foreground, noun
    )
    return (
        f"a {attributes.classname} texture with {pattern} "
        f"on a {attributes.background} background, {attributes.finish}."
    )


def short_captions(attributes: Attributes) -> list[str]:
    """Return every caption of SHORT_TEMPLATES, and the full description, for an image."""
    values = {
        "classname": attributes.classname,
        "noun": NOUNS[attributes.classname],
        "size": size_word(attributes),
        "orientation": attributes.orientation or "",
        "foreground": attributes.foreground,
        "background": attributes.background,
        "finish": attributes.finish,
        "tone": tone(attributes.foreground),
        "ground": tone(attributes.background),
    }
    return [
        _words(*template.format(**values).split()) for template in SHORT_TEMPLATES
    ] + [describe(attributes)]


def _shared(values: Iterable[str | None], least: int) -> str | None:
    """Return the value that at least `least` of them have."""
    ((value, count),) = Counter(values).most_common(1)
    return value if count >= least else None


def _texture_phrase(classnames: Sequence[str]) -> str:
    """Return the class that the four have in common.

    "striped", "mostly striped", "partly striped", "striped and woven" or "various".
    """
    counts = Counter(classnames)
    if sorted(counts.values()) == [2, 2]:
        return " and ".join(sorted(counts))
    [(first, n_first)] = counts.most_common(1)
    return {4: first, 3: f"mostly {first}", 2: f"partly {first}", 1: "various"}[
        n_first
    ]


def describe_group(group: Sequence[Attributes]) -> str:
    """Return the group description of four images.

    E.g. "mostly striped textures with thin light stripes on dark backgrounds, grainy." It names
    the class of most, and of the size, orientation, colours (else tones) and finish whatever at
    least three of the four share.
    """
    if len(group) != 4:
        raise ValueError(f"a group is four images, not {len(group)}")
    most = len(group) - 1
    foreground, background, size, orientation, finish = (
        _shared(values, most)
        for values in (
            [a.foreground for a in group],
            [a.background for a in group],
            [size_word(a) for a in group],
            [a.orientation for a in group],
            [a.finish for a in group],
        )
    )
    colour = foreground or _shared([tone(a.foreground) for a in group], most)
    ground = background or _shared([tone(a.background) for a in group], most)
    noun = _shared([NOUNS[a.classname] for a in group], most) or "patterns"
    return _words(
        _texture_phrase([a.classname for a in group]),
        "textures with",
        _words(size, orientation, colour, noun),
        f"on {ground} backgrounds" if ground else None,
    ) + (f", {finish}." if finish else ".")
