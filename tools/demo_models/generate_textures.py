"""Draw the demo's images: 64x64 RGB textures of 14 DTD classes, with their attributes.

    python tools/demo_models/generate_textures.py latteclip/demo/images

writes the shards of the package. Two domains share the classes: the source is clean, the target is
bent, blotchy, dim, blurred and noisy. A `gap` (0..1) is a fraction of the way from source to
target. Only numpy draws, from one seeded generator. Arrays are float32 [N, 64, 64] unless stated
otherwise (N images of one class, drawn together). Coordinates run from -1 to 1.
"""

import io
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

TRAIN, TEST, GAP, SEED = 1500, 2100, 0.85, 0  # the demo's
QUALITY = 60  # of JPEG, from 1 to 100
SIDE = 64
# Bands and strokes of an image whose tone is drawn, after which they repeat.
BANDS = 64
# Images of one class drawn at once; bounds memory, and is part of what a seed means.
CHUNK = 128
COLOURS = {
    "red": (205, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 215, 60),
    "green": (50, 150, 60),
    "teal": (30, 150, 150),
    "blue": (45, 85, 200),
    "purple": (130, 60, 170),
    "pink": (240, 140, 180),
    "brown": (125, 80, 45),
    "black": (25, 25, 28),
    "grey": (128, 128, 128),
    "white": (245, 245, 245),
    "beige": (220, 200, 165),
    "olive": (115, 115, 50),
    "navy": (25, 35, 95),
}
EARTHY = ("brown", "grey", "beige", "olive", "black", "white", "teal", "navy")
SIZES = ("fine", "medium", "coarse")
ORIENTATIONS = ("horizontal", "diagonal", "vertical")
FINISHES = ("crisp", "soft", "grainy", "faded")
DIRECTIONAL = ("banded", "striped", "zigzagged")

COLOUR_NAMES = tuple(COLOURS)
_RGB = np.array(list(COLOURS.values()), np.float32) / 255  # [15, 3]
_LUMINANCE = _RGB @ np.array([0.3, 0.59, 0.11], np.float32)  # [15]
_EARTHY_IDS = np.array([COLOUR_NAMES.index(name) for name in EARTHY])
_AXIS = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1).astype(np.float32)
_X = _AXIS[None, None, :]  # broadcast to [1, 64, 64]
_Y = _AXIS[None, :, None]


@dataclass(frozen=True)
class Attributes:
    """What is true of one image. Classes without a direction have no orientation."""

    classname: str
    foreground: str
    background: str
    size: str
    orientation: str | None
    finish: str


# At gap 0 (source) and gap 1 (target). Measures are drawn uniformly from low to high, in an order
# that is part of a seed.
MEASURES = {
    # Standard deviation of pixel noise, intensities in 0..1.
    "noise": ((0.0, 0.02), (0.03, 0.10)),
    "blur": ((0.1, 0.4), (0.5, 1.1)),  # sigma of the blur, pixels
    "light": ((0.0, 0.12), (0.2, 0.6)),  # slope of the light across the image
    "perspective": ((0.0, 0.08), (0.15, 0.4)),
    "warp": ((0.0, 0.02), (0.03, 0.08)),  # bending, in image halves
    "contrast": ((0.85, 1.0), (0.3, 0.65)),
    "frequency": ((0.95, 1.05), (0.7, 1.5)),  # factor on the pattern's frequency
    "brightness": ((0.0, 0.1), (-0.15, 0.05)),  # added to intensities
    "blotches": ((0.0, 0.02), (0.05, 0.18)),  # strength of uneven ground
}
CAST = 0.0, 0.08  # standard deviation of the colour cast
# Standard deviation of the angle around its orientation, radians.
ROTATION = 0.08, 0.2
INVERTED = 0.1, 0.5  # probability that a pattern may be lighter than its ground
EARTHINESS = 0.0, 0.75  # probability that a colour comes from EARTHY


def _between(gap: float, source: float, target: float) -> float:
    return (1 - gap) * source + gap * target


@dataclass(frozen=True)
class Plane:
    """N bent planes and the generator that decides the details of a pattern on them."""

    rng: np.random.Generator
    x: np.ndarray  # [N, 64, 64]
    y: np.ndarray  # [N, 64, 64]
    turned: tuple[np.ndarray, np.ndarray]  # x and y, turned by the pattern's angle
    # [N, 64, 64], position in the pattern's direction, in periods.
    along: np.ndarray
    across: np.ndarray  # [N, 64, 64], position across it
    frequency: np.ndarray  # [N, 1, 1], periods across the image
    phase: np.ndarray  # [2, N, 1, 1], periods

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def pixel(self) -> np.ndarray:
        """The width of a pixel in periods, [N, 1, 1]."""
        return self.frequency / SIDE

    def uniform(self, low: float, high: float) -> np.ndarray:
        """Return one number per image, [N, 1, 1]."""
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def by_image(self, table: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Look `index` [N, 64, 64] up in each image's row of `table` [N, K]."""
        return np.take_along_axis(table, index.reshape(self.n, -1), 1).reshape(
            index.shape
        )


class Relief(NamedTuple):
    """A drawn pattern, of background 0 and foreground 1. Shade multiplies, gloss adds white."""

    cover: np.ndarray
    shade: np.ndarray = np.ones(1, np.float32)
    gloss: np.ndarray = np.zeros(1, np.float32)


def _upsampling(grid: int) -> np.ndarray:
    """Return the smooth interpolation from `grid` points to 64 pixels, [64, grid]."""
    position = np.linspace(0, grid - 1.0001, SIDE)
    left = position.astype(int)
    fraction = position - left
    fraction = fraction * fraction * (3 - 2 * fraction)
    weights = np.zeros((SIDE, grid), np.float32)
    weights[np.arange(SIDE), left] = 1 - fraction
    weights[np.arange(SIDE), left + 1] += fraction
    return weights


_UPSAMPLING = {grid: _upsampling(grid) for grid in (3, 4, 6, 9, 13, 20)}


def _smooth_noise(rng: np.random.Generator, n: int, grid: int) -> np.ndarray:
    """Return noise in -1..1 with `grid` independent points per side."""
    points = rng.uniform(-1, 1, (n, grid, grid)).astype(np.float32)
    upsampling = _UPSAMPLING[grid]
    noise: np.ndarray = upsampling @ points @ upsampling.T
    return noise


def _fractal_noise(
    rng: np.random.Generator, n: int, grids: tuple[int, ...] = (4, 6, 9, 13, 20)
) -> np.ndarray:
    """Return the sum of smooth noises, each finer one 0.6 times as strong."""
    octaves = [
        0.6**i * _smooth_noise(rng, n, grid) for i, grid in enumerate(grids)
    ]
    noise: np.ndarray = np.sum(octaves, axis=0)
    return noise


def _fraction(t: np.ndarray) -> np.ndarray:
    fraction: np.ndarray = t - np.floor(t)
    return fraction


def _step(t: np.ndarray, pixel: np.ndarray | float) -> np.ndarray:
    """Return 1 where t > 0, 0 elsewhere, with an edge one pixel wide."""
    return np.clip(t / pixel + 0.5, 0, 1)


def _lines(t: np.ndarray, width: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Draw lines of `width` at the middle of every period of t."""
    return _step(width / 2 - np.abs(_fraction(t) - 0.5), pixel)


def _distances(x: np.ndarray, y: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the squared distance of every pixel to each of K points [N, K, 2], [N, K, 64, 64]."""
    dx = x[:, None] - points[:, :, 0, None, None]
    dy = y[:, None] - points[:, :, 1, None, None]
    squares: np.ndarray = dx * dx + dy * dy
    return squares


# --- one function per class --------------------------------------------------------------------


def _striped(p: Plane) -> Relief:
    return Relief(_lines(p.across, p.uniform(0.3, 0.6), p.pixel))


def _banded(p: Plane) -> Relief:
    """Draw bands of five tones and uneven width that melt into each other."""
    pace = 0.62
    t = p.across * pace
    sway_frequency = p.uniform(0.3, 0.6)
    periods = 2 * np.pi * t * sway_frequency
    angle = periods + 2 * np.pi * p.phase[0]
    sway = p.uniform(0.1, 0.22)
    t = t + sway * np.sin(angle)
    steps = p.rng.integers(1, 4, (p.n, BANDS))
    tones = np.cumsum(steps, 1) % 5 / 4
    tones = tones.astype(np.float32)
    band = np.floor(t).astype(int)
    sharpest = p.pixel * pace * 2
    width = sharpest + p.uniform(0, 0.12)
    blend = np.clip((t - band) / width, 0, 1)
    before = p.by_image(tones, (band - 1) % BANDS)
    here = p.by_image(tones, band % BANDS)
    return Relief(before * (1 - blend) + here * blend)


def _chequered(p: Plane) -> Relief:
    waves = np.sin(np.pi * p.along) * np.sin(np.pi * p.across)
    return Relief(_step(waves, p.pixel * np.pi * 0.8))


def _dotted(p: Plane) -> Relief:
    is_staggered = p.rng.random((p.n, 1, 1)) < 0.5
    shift = np.where(is_staggered, 0.5, 0.0)
    row = np.floor(p.across).astype(int) & 1
    dx = _fraction(p.along + shift * row) - 0.5
    dy = _fraction(p.across) - 0.5
    radius = p.uniform(0.2, 0.36)
    return Relief(_step(radius - np.hypot(dx, dy), p.pixel))


def _grid(p: Plane) -> Relief:
    width = np.maximum(p.uniform(0.08, 0.2), 1.2 * p.pixel)
    lines_along = _lines(p.along, width, p.pixel)
    lines_across = _lines(p.across, width, p.pixel)
    return Relief(np.maximum(lines_along, lines_across))


def _zigzagged(p: Plane) -> Relief:
    height = p.uniform(1.0, 1.7)
    turn = np.abs(_fraction(p.along * 0.5) - 0.5) * 2 * height
    width = p.uniform(0.35, 0.58)
    return Relief(_lines(p.across * 0.8 + turn, width, p.pixel * 1.2))


def _honeycombed(p: Plane) -> Relief:
    """Draw hexagons: the nearer of two shifted rectangular lattices is the cell's centre."""
    ratio = float(np.sqrt(3))
    rows = p.across / ratio
    first_x = _fraction(p.along) - 0.5
    first_y = (_fraction(rows) - 0.5) * ratio
    second_x = _fraction(p.along - 0.5) - 0.5
    second_y = (_fraction(rows - 0.5) - 0.5) * ratio
    first_distance = first_x * first_x + first_y * first_y
    second_distance = second_x * second_x + second_y * second_y
    first_is_nearer = first_distance < second_distance
    dx = np.abs(np.where(first_is_nearer, first_x, second_x))
    dy = np.abs(np.where(first_is_nearer, first_y, second_y))
    slanted = dx * 0.5 + dy * ratio / 2
    to_centre = np.maximum(dx, slanted)
    wall = np.maximum(p.uniform(0.05, 0.12), 0.6 * p.pixel)
    return Relief(1 - _step(to_centre - (0.5 - wall), p.pixel))


def _cracked(p: Plane) -> Relief:
    """Draw borders between the cells of random points, on a crumpled plane."""
    most = 26
    points = p.rng.uniform(-1.15, 1.15, (p.n, most, 2))
    points = points.astype(np.float32)
    wanted = (p.frequency[:, 0] * 0.5) ** 2
    wanted = np.clip(wanted, 5, most)
    is_unwanted = np.arange(most)[None] >= wanted
    points[is_unwanted] = 9  # far outside the image
    x = p.x + 0.09 * _fractal_noise(p.rng, p.n)
    y = p.y + 0.09 * _fractal_noise(p.rng, p.n)
    squares = _distances(x, y, points)
    nearest_two = np.partition(squares, 1, axis=1)[:, :2]
    distances = np.sqrt(nearest_two)
    width = p.uniform(0.05, 0.1)
    width = width * (1 + 0.8 * _smooth_noise(p.rng, p.n, 6))
    from_border = distances[:, 1] - distances[:, 0]
    return Relief(_step(width - from_border, 0.05))


def _bubbly(p: Plane) -> Relief:
    """Draw lit balls of uneven size, the frontmost at each pixel seen."""
    most = 34
    centres = p.rng.uniform(-1.15, 1.15, (p.n, most, 2))
    centres = centres.astype(np.float32)
    radii = p.rng.uniform(0.56, 1.44, (p.n, most))
    radii = radii.astype(np.float32) / p.frequency[:, 0]
    wanted = (p.frequency[:, 0] * 0.62) ** 2
    wanted = np.clip(wanted, 5, most)
    is_unwanted = np.arange(most)[None] >= wanted
    radii[is_unwanted] = 1e-3
    # [N, K, 64, 64].
    heights = radii[..., None, None] ** 2 - _distances(p.x, p.y, centres)
    front = heights.argmax(1)
    height = np.take_along_axis(heights, front[:, None], 1)
    height = height[:, 0]
    radius = p.by_image(radii, front)
    centre_x = p.by_image(centres[..., 0], front)
    centre_y = p.by_image(centres[..., 1], front)
    normal_x = (p.x - centre_x) / radius
    normal_y = (p.y - centre_y) / radius
    inside = _step(height / (2 * radius), 2 / SIDE)
    from_rim = np.sqrt(np.clip(height, 0, None))
    darkness = np.clip(1 - 1.6 * from_rim / radius, 0, 1)
    rim = inside * darkness
    light = p.uniform(0, 2 * np.pi)
    light_x = np.cos(light)
    light_y = np.sin(light)
    spot_x = normal_x - 0.42 * light_x
    spot_y = normal_y - 0.42 * light_y
    from_spot = spot_x**2 + spot_y**2
    spot = np.exp(-from_spot / 0.035)
    facing = normal_x * light_x + normal_y * light_y
    shade = 1 + inside * 0.38 * facing - 0.3 * rim
    cover = inside * p.uniform(0.6, 1.0)
    return Relief(cover, shade, gloss=0.75 * inside * spot)


def _marbled(p: Plane) -> Relief:
    turbulence = _fractal_noise(p.rng, p.n, (3, 4, 6, 9, 13, 20))
    bending = p.uniform(0.5, 0.9) * turbulence
    t = p.across * 0.33 + bending
    sharpness = p.uniform(1.0, 3.2)
    distance = np.abs(np.sin(np.pi * t))
    veins = (1 - distance) ** sharpness
    clouds = 0.18 * _fractal_noise(p.rng, p.n, (6, 9, 13))
    return Relief(np.clip(veins + clouds, 0, 1))


def _polar(p: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Return the radius and angle around a random centre near the middle."""
    dx = p.x - p.uniform(-0.45, 0.45)
    dy = p.y - p.uniform(-0.45, 0.45)
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def _spiralled(p: Plane) -> Relief:
    radius, angle = _polar(p)
    arms = p.rng.choice([-3, -2, -1, 1, 2, 3], (p.n, 1, 1))
    is_logarithmic = p.rng.random((p.n, 1, 1)) < 0.3
    evenly = radius * 0.5
    widening = np.log(radius + 0.05) * 0.35
    turns = np.where(is_logarithmic, widening, evenly)
    turns = p.frequency * turns
    turns_of_arms = arms * angle / (2 * np.pi)
    t = turns_of_arms + turns + p.phase[0]
    width = p.uniform(0.35, 0.55)
    return Relief(_lines(t, width, p.pixel * 1.3))


def _cobwebbed(p: Plane) -> Relief:
    """Draw uneven spokes around a centre and sagging rings between them."""
    radius, angle = _polar(p)
    n_spokes = p.rng.integers(7, 15, (p.n, 1, 1))
    phase = 2 * np.pi * p.phase  # radians
    slow = 0.25 * np.sin(angle * 2 + phase[0])
    fast = 0.12 * np.sin(angle * 5 + phase[1])
    wobble = slow + fast
    sectors = (angle + wobble) * n_spokes / (2 * np.pi)
    sector = _fraction(sectors) - 0.5  # 0 on a spoke
    width = p.uniform(0.9, 1.7) * 2 / SIDE
    from_middle = np.abs(np.sin(np.pi * sector))
    from_spoke = from_middle * 2 * radius / n_spokes
    spokes = _step(width / 2 - from_spoke, 2 / SIDE)
    sag = 0.16 * (0.5 - 2 * np.abs(sector))
    sagging = radius * (1 + sag)
    unsteady = 0.25 * _smooth_noise(p.rng, p.n, 6)
    rings = sagging * p.frequency * 0.75 + unsteady
    ring_width = width * p.frequency * 0.75
    threads = _lines(rings, ring_width, p.pixel * 1.5)
    threads = threads * p.uniform(0.65, 1.0)
    return Relief(np.maximum(spokes, threads))


def _woven(p: Plane) -> Relief:
    """Draw strands that pass over and under each other, rounded by their shade."""
    cells = np.floor(p.along) + np.floor(p.across)
    is_over = (cells.astype(int) & 1) == 1
    along = _fraction(p.along)
    across = _fraction(p.across)
    side = np.where(is_over, across, along)
    length = np.where(is_over, along, across)
    slack = np.maximum(p.uniform(0.04, 0.12), 0.5 * p.pixel)
    edge = _step(0.5 - slack - np.abs(side - 0.5), p.pixel)
    bulge_along = 0.62 + 0.38 * np.sin(np.pi * length)
    bulge_across = 0.8 + 0.2 * np.sin(np.pi * side)
    bulge = bulge_along * bulge_across
    cover = np.where(is_over, 1, p.uniform(0, 0.5))
    return Relief(cover, shade=(0.35 + 0.65 * edge) * bulge)


def _crosshatched(p: Plane) -> Relief:
    """Draw two families of unsteady pencil strokes that cross at a slant."""
    slant = p.uniform(0.45, 0.68)  # radians from the pattern's direction
    unsteady = 0.12 * _smooth_noise(p.rng, p.n, 6)
    along, across = p.turned
    cover = np.zeros_like(along)
    for sign in (1, -1):
        sideways = -along * np.sin(sign * slant)
        turned = sideways + across * np.cos(slant)
        position = turned * p.frequency * 0.62
        t = position + unsteady + sign * 5 * p.phase[0]
        strengths = p.rng.uniform(0.35, 1.0, (p.n, BANDS))
        strengths = strengths.astype(np.float32)
        pressure = 1 + 0.5 * _smooth_noise(p.rng, p.n, 9)
        pressure = np.clip(pressure, 0, 1)
        width = np.maximum(p.uniform(0.18, 0.36), 1.3 * p.pixel)
        strokes = _lines(t, width, p.pixel * 1.3)
        stroke = np.floor(t).astype(int) % BANDS
        strength = p.by_image(strengths, stroke)
        cover = np.maximum(cover, strength * strokes * pressure)
    return Relief(cover)


PATTERNS: dict[str, Callable[[Plane], Relief]] = {
    draw.__name__.removeprefix("_"): draw
    for draw in (
        _banded,
        _bubbly,
        _chequered,
        _cobwebbed,
        _cracked,
        _crosshatched,
        _dotted,
        _grid,
        _honeycombed,
        _marbled,
        _spiralled,
        _striped,
        _woven,
        _zigzagged,
    )
}
CLASSNAMES = tuple(PATTERNS)


# --- from pattern to photo ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """The attribute ids and measures of N images of one class, each array [N]."""

    foreground: np.ndarray
    background: np.ndarray
    size: np.ndarray
    orientation: np.ndarray
    angle: np.ndarray
    frequency: np.ndarray
    measures: dict[str, np.ndarray]  # by name of MEASURES


def _colour(rng: np.random.Generator, n: int, earthy: float) -> np.ndarray:
    """Return the ids of n colours, earthy ones with the given probability."""
    any_colour = rng.integers(0, len(COLOUR_NAMES), n)
    earthy_colour = rng.choice(_EARTHY_IDS, n)
    return np.where(rng.random(n) < earthy, earthy_colour, any_colour)


def _difference(front: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Return by how much two colours of an image differ, [N], from their ids."""
    differences: np.ndarray = np.abs(_RGB[front] - _RGB[back]).sum(1)
    return differences


def _colours(
    rng: np.random.Generator, n: int, gap: float, classname: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return foreground and background ids, [N] each, that differ visibly."""
    earthy = _between(gap, *EARTHINESS)
    front = _colour(rng, n, earthy)
    back = _colour(rng, n, earthy)
    while (alike := _difference(front, back) < 0.75).any():
        back[alike] = _colour(rng, int(alike.sum()), earthy)
    front_is_lighter = _LUMINANCE[front] > _LUMINANCE[back]
    if classname == "cobwebbed":  # threads are lighter than what is behind them
        swap = ~front_is_lighter & (rng.random(n) < 0.8)
    else:
        swap = front_is_lighter & (rng.random(n) > _between(gap, *INVERTED))
    return np.where(swap, back, front), np.where(swap, front, back)


def _draw_attributes(
    rng: np.random.Generator, n: int, gap: float, classname: str
) -> _Draw:
    measures = {}
    for name, (source, target) in MEASURES.items():
        low = _between(gap, source[0], target[0])
        high = _between(gap, source[1], target[1])
        measures[name] = rng.uniform(low, high, n).astype(np.float32)
    front, back = _colours(rng, n, gap, classname)
    size = rng.integers(0, 3, n)
    base = np.array([8.5, 6.0, 4.0])[size]
    base = base * rng.uniform(0.9, 1.1, n)
    frequency = np.clip(base * measures["frequency"], 2.6, 13).astype(np.float32)
    # Multiples of 45 degrees; both diagonals have one name.
    direction = rng.integers(0, 4, n)
    rotation = rng.normal(0, _between(gap, *ROTATION), n)
    angle = direction * np.pi / 4 + rotation.clip(-0.3, 0.3)
    return _Draw(
        foreground=front,
        background=back,
        # Named for what is seen, not for the base.
        size=np.digitize(-frequency, [-7.2, -5.0]),
        orientation=np.array([0, 1, 2, 1])[direction],
        angle=angle.astype(np.float32),
        frequency=frequency,
        measures=measures,
    )


def _for_pixels(values: np.ndarray) -> np.ndarray:
    """Return one number per image [N] as [N, 1, 1]."""
    return values[:, None, None]


def _bend(rng: np.random.Generator, draw: _Draw) -> Plane:
    """Return planes seen in perspective and warped, with the pattern's angle and frequency."""
    n = len(draw.angle)
    towards = rng.uniform(0, 2 * np.pi, n).astype(np.float32)
    tilt = draw.measures["perspective"]
    tilt_x = _for_pixels(tilt * np.cos(towards))
    tilt_y = _for_pixels(tilt * np.sin(towards))
    depth = 1 + tilt_x * _X + tilt_y * _Y
    warp = 2 * _for_pixels(draw.measures["warp"])
    phase = rng.uniform(0, 1, (2, n, 1, 1)).astype(np.float32)
    x = _X / depth + warp * _smooth_noise(rng, n, 4)
    y = _Y / depth + warp * _smooth_noise(rng, n, 4)
    cos = _for_pixels(np.cos(draw.angle))
    sin = _for_pixels(np.sin(draw.angle))
    frequency = _for_pixels(draw.frequency)
    turned_x = x * cos + y * sin
    turned_y = -x * sin + y * cos
    periods_x = turned_x * frequency / 2
    periods_y = turned_y * frequency / 2
    return Plane(
        rng=rng,
        x=x,
        y=y,
        turned=(turned_x, turned_y),
        along=periods_x + phase[0],
        across=periods_y + phase[1],
        frequency=frequency,
        phase=phase,
    )


def _paint(rng: np.random.Generator, draw: _Draw, relief: Relief) -> np.ndarray:
    """Colour a pattern, [N, 64, 64, 3] in about 0..1."""
    n = len(draw.foreground)
    jitter = rng.normal(0, 0.035, (2, n, 3)).astype(np.float32)
    front = np.clip(_RGB[draw.foreground] + jitter[0], 0, 1)
    back = np.clip(_RGB[draw.background] + jitter[1], 0, 1)
    front = front[:, None, None]
    back = back[:, None, None]
    cover = relief.cover[..., None]
    shade = relief.shade[..., None]
    gloss = relief.gloss[..., None]
    image: np.ndarray = back + (front - back) * cover
    image = image * shade
    image += (1 - image) * gloss
    return image


def _blur(image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Blur with a Gaussian of seven taps per side and sigma [N] in pixels."""
    taps = np.arange(-3, 4, dtype=np.float32)
    sigma = np.maximum(sigma, 0.12)[:, None]
    weights = np.exp(-(taps**2) / (2 * sigma**2))  # [N, 7]
    weights = weights / weights.sum(1, keepdims=True)
    down = _weighted_shifts(image, weights, axis=1)
    return _weighted_shifts(down, weights, axis=2)


def _weighted_shifts(
    image: np.ndarray, weights: np.ndarray, axis: int
) -> np.ndarray:
    """Return the sum of images shifted by -3 to 3 pixels along an axis, with weights [N, 7]."""
    margins = [(0, 0)] * image.ndim
    margins[axis] = (3, 3)
    padded = np.pad(image, margins, mode="edge")
    total = np.zeros_like(image)
    for tap in range(7):
        shifted = padded.take(range(tap, tap + SIDE), axis=axis)
        weight = weights[:, tap, None, None, None]
        total += weight * shifted
    return total


def _photograph(
    rng: np.random.Generator, image: np.ndarray, draw: _Draw, gap: float
) -> np.ndarray:
    """Return painted images [N, 64, 64, 3] with the flaws of their domain, as uint8."""
    n = len(image)
    measure = {
        name: value[:, None, None, None] for name, value in draw.measures.items()
    }
    mean = image.mean((1, 2), keepdims=True)
    differences = (image - mean) * measure["contrast"]
    image = mean + differences
    blotches = _fractal_noise(rng, n, (4, 6, 9, 13))[..., None]
    image = image + measure["blotches"] * blotches
    towards = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    towards = towards.astype(np.float32)
    slope = _X * np.cos(towards) + _Y * np.sin(towards)
    light = 1 + measure["light"] * slope[..., None]
    image = image * light
    cast_deviation = _between(gap, *CAST)
    cast = rng.normal(0, cast_deviation, (n, 1, 1, 3))
    cast = cast.astype(np.float32)
    image = image + measure["brightness"] + cast
    image = _blur(image, draw.measures["blur"])
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + measure["noise"] * noise
    scaled = np.clip(image, 0, 1) * 255
    return (scaled + 0.5).astype(np.uint8)


def _name(draw: _Draw, classname: str) -> list[Attributes]:
    """Return the attributes of each image. The finish is its strongest flaw."""
    is_grainy = draw.measures["noise"] > 0.055
    is_faded = draw.measures["contrast"] < 0.5
    is_soft = draw.measures["blur"] > 0.6
    finish = np.select(
        [is_grainy, is_faded, is_soft], ["grainy", "faded", "soft"], "crisp"
    )
    attributes = []
    for i in range(len(draw.foreground)):
        orientation = None
        if classname in DIRECTIONAL:
            orientation = ORIENTATIONS[draw.orientation[i]]
        image = Attributes(
            classname=classname,
            foreground=COLOUR_NAMES[draw.foreground[i]],
            background=COLOUR_NAMES[draw.background[i]],
            size=SIZES[draw.size[i]],
            orientation=orientation,
            finish=str(finish[i]),
        )
        attributes.append(image)
    return attributes


def generate(
    n: int, gap: float, seed: int, *, stream: int = 0
) -> tuple[np.ndarray, list[Attributes]]:
    """Return n textures of random classes, uint8 [N, 64, 64, 3], and the attributes of each.

    Streams of one seed share no images.
    """
    rng = np.random.default_rng([seed, stream])
    labels = rng.integers(0, len(CLASSNAMES), n)
    images = np.empty((n, SIDE, SIDE, 3), np.uint8)
    attributes: dict[int, Attributes] = {}
    for label, classname in enumerate(CLASSNAMES):
        members = np.flatnonzero(labels == label)
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            draw = _draw_attributes(rng, len(chunk), gap, classname)
            relief = PATTERNS[classname](_bend(rng, draw))
            images[chunk] = _photograph(rng, _paint(rng, draw, relief), draw, gap)
            attributes.update(
                zip(chunk.tolist(), _name(draw, classname), strict=True)
            )
    return images, [attributes[i] for i in range(n)]


def write_shards(
    folder: Path,
    train: int = TRAIN,
    test: int = TEST,
    gap: float = GAP,
    seed: int = SEED,
) -> None:
    """Write `train.tar` and `test.tar` as WebDataset has them, of JPEGs and class names.

    Their images come from different random streams of the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for stream, (name, n) in enumerate({"train": train, "test": test}.items()):
        images, attributes = generate(n, gap, seed, stream=stream)
        with tarfile.open(
            folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for number, (image, named) in enumerate(
                zip(images, attributes, strict=True), first
            ):
                key = f"images/{named.classname}/{named.classname}_{number:05d}"
                _add(tar, f"{key}.jpg", jpeg(image))
                _add(tar, f"{key}.cls", named.classname.encode())
        first += n


def jpeg(image: np.ndarray) -> bytes:
    """Return an image [64, 64, 3] as a JPEG with all its colours.

    With colours of half the size, zero-shot loses six points.
    """
    content = io.BytesIO()
    options = {"quality": QUALITY, "subsampling": "4:4:4", "optimize": True}
    Image.fromarray(image).save(content, "JPEG", **options)
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    write_shards(Path(sys.argv[1]))
