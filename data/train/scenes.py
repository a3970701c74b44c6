"""Synthetic scenes: what is in one, and how it is drawn.

A scene is one to three coloured shapes, without overlap, on a plain, graded or striped background. Everything is a pure
function of a NumPy generator, so one seed gives one sequence of scenes on every machine. Objects are kept in reading
order, left to right, with a clear gap between their centres, so that "the first object" means one thing only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["COLOURS", "MAX_OBJECTS", "SHAPES", "SIDE", "SIZES", "Scene", "Shape", "draw", "draw_labels", "scenes"]

SIDE = 128
"""Width and height of a scene in pixels."""

MAX_OBJECTS = 3

SIZES: dict[str, tuple[int, int]] = {"small": (13, 15), "large": (21, 24)}
"""Name of a size → smallest and largest half-width in pixels; the gap keeps the two words unambiguous."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 225, 50),
    "green": (40, 150, 60),
    "blue": (35, 70, 200),
    "purple": (125, 45, 160),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "cross")

_COUNT_WEIGHTS = (0.2, 0.4, 0.4)
_MARGIN = 3
_GAP = 4
_ORDER_GAP = 12
_TIE = 6
_JITTER = 12


class Shape(NamedTuple):
    """One object of a scene."""

    size: str
    colour: str
    shape: str
    x: int
    """Centre, pixels from the left."""
    y: int
    """Centre, pixels from the top."""
    radius: int
    """Half-width in pixels."""
    rgb: tuple[int, int, int]
    """The colour as drawn: the named one with a little jitter."""

    @property
    def kind(self) -> tuple[str, str, str]:
        """Size, colour and shape: what a caption must name."""
        return self.size, self.colour, self.shape


class Scene(NamedTuple):
    """Objects from left to right, and the background behind them."""

    objects: tuple[Shape, ...]
    pattern: str
    """``plain``, ``graded`` or ``striped``."""
    shades: tuple[tuple[int, int, int], tuple[int, int, int]]
    """The two background colours (the first alone when plain)."""


def scenes(seed: int) -> Iterator[Scene]:
    """Yield the endless sequence of scenes that belongs to a seed.

    Parameters
    ----------
    seed : int
        Different seeds give independent sequences.

    Yields
    ------
    Scene
        No two objects of a scene share size, colour and shape.
    """
    rng = np.random.default_rng(seed)
    while True:
        count = int(rng.choice(MAX_OBJECTS, p=_COUNT_WEIGHTS)) + 1
        objects = _place(rng, count)
        if objects is not None:
            yield Scene(objects, *_background(rng))


def draw(scene: Scene) -> Image.Image:
    """Draw a scene.

    Returns
    -------
    PIL.Image.Image
        RGB, ``SIDE`` × ``SIDE``.
    """
    image = Image.fromarray(_background_pixels(scene))
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        _outline(pen, item, item.rgb)
    return image


def draw_labels(scene: Scene) -> np.ndarray:
    """Say for every pixel which object covers it.

    Returns
    -------
    numpy.ndarray
        (SIDE, SIDE) uint8: 0 background, k the k-th object from the left.
    """
    image = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(image)
    for order, item in enumerate(scene.objects, start=1):
        _outline(pen, item, order)
    return np.asarray(image)


def _place(rng: np.random.Generator, count: int) -> tuple[Shape, ...] | None:
    placed: list[Shape] = []
    for _ in range(60):
        if len(placed) == count:
            return tuple(sorted(placed, key=lambda item: item.x))
        candidate = _random_shape(rng)
        if all(_fits(candidate, other) for other in placed):
            placed.append(candidate)
    return None


def _random_shape(rng: np.random.Generator) -> Shape:
    size = str(rng.choice(list(SIZES)))
    colour = str(rng.choice(list(COLOURS)))
    shape = str(rng.choice(SHAPES))
    radius = int(rng.integers(SIZES[size][0], SIZES[size][1] + 1))
    x, y = (int(v) for v in rng.integers(radius + _MARGIN, SIDE - radius - _MARGIN, size=2))
    jitter = rng.integers(-_JITTER, _JITTER + 1, size=3)
    red, green, blue = (int(v) for v in np.clip(np.array(COLOURS[colour]) + jitter, 0, 255))
    return Shape(size, colour, shape, x, y, radius, (red, green, blue))


def _fits(candidate: Shape, other: Shape) -> bool:
    dx, dy = abs(candidate.x - other.x), abs(candidate.y - other.y)
    apart = max(dx, dy) > candidate.radius + other.radius + _GAP
    # Without these two gaps "first from the left" and "beside or above" would be a matter of one pixel.
    return apart and dx >= _ORDER_GAP and abs(dx - dy) >= _TIE and candidate.kind != other.kind


def _background(rng: np.random.Generator) -> tuple[str, tuple[tuple[int, int, int], tuple[int, int, int]]]:
    pattern = str(rng.choice(["plain", "graded", "striped"]))
    level = int(rng.integers(95, 176))
    tint = rng.integers(-14, 15, size=3)
    step = int(rng.integers(6, 15)) * (1 if rng.random() < 0.5 else -1)
    first = [int(v) for v in level + tint]
    second = [v + step for v in first]
    return pattern, ((first[0], first[1], first[2]), (second[0], second[1], second[2]))


def _background_pixels(scene: Scene) -> np.ndarray:
    first, second = (np.array(shade, dtype=np.float64) for shade in scene.shades)
    ramp = np.zeros(SIDE)
    if scene.pattern == "graded":
        ramp = np.linspace(0.0, 1.0, SIDE)
    elif scene.pattern == "striped":
        ramp = (np.arange(SIDE) // 8 % 2).astype(np.float64)
    rows = np.rint(first + ramp[:, None] * (second - first)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rows[:, None, :], (SIDE, SIDE, 3)))


def _outline(pen: ImageDraw.ImageDraw, item: Shape, ink: tuple[int, int, int] | int) -> None:
    x, y, r = item.x, item.y, item.radius
    if item.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif item.shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    elif item.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=ink)
    elif item.shape == "diamond":
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=ink)
    else:
        arm = max(2, r // 3)
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=ink)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=ink)
