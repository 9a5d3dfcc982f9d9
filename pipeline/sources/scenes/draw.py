"""Draws a scene: shapes as polygons, four times too large, then averaged down to smooth edges."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from pipeline.sources.scenes.world import Scene

SIDE = 64
OVERSAMPLE = 4
NOISE = 3.0

Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]

RGB: dict[str, Rgb] = {
    "red": (220, 30, 35),
    "orange": (250, 130, 10),
    "yellow": (245, 225, 30),
    "green": (30, 150, 50),
    "turquoise": (40, 205, 205),
    "blue": (35, 65, 215),
    "purple": (125, 40, 165),
    "pink": (250, 150, 195),
}
BACKGROUND_RGB: dict[str, Rgb] = {"black": (22, 22, 24), "grey": (122, 122, 124), "white": (240, 240, 238)}
RADIUS = {"small": 10.0, "medium": 14.0, "large": 18.0}
SECONDARY_RADIUS = 6.5
CENTRE = {"centre": (32, 32), "left": (21, 32), "right": (43, 32), "top": (32, 21), "bottom": (32, 43)}
DIRECTION = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene: uint8 [64, 64, 3]. Its seed moves, turns and shades the objects a little."""
    rng = np.random.default_rng([scene.seed, 0])
    canvas = _background(scene.background, rng)
    x, y = (c + rng.uniform(-1.5, 1.5) for c in CENTRE[scene.position])
    radius = RADIUS[scene.size] * rng.uniform(0.95, 1.05)
    if scene.secondary is not None:
        centre = _beside(x, y, radius, scene.secondary.relation, rng)
        _place(canvas, scene.secondary.shape, scene.secondary.colour, "plain", centre, SECONDARY_RADIUS, rng)
    _place(canvas, scene.shape, scene.colour, scene.texture, (x, y), radius, rng)
    pixels = np.asarray(canvas.reduce(OVERSAMPLE), dtype=np.float32)
    noisy = pixels + NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def outline(shape: str, radius: float, turn: float) -> Points:
    """Return a shape's corners around (0, 0), y downwards, turned by `turn` radians."""
    angles, radii = _polar(shape)
    return [
        (radius * r * math.cos(a + turn), radius * r * math.sin(a + turn))
        for a, r in zip(angles, radii, strict=True)
    ]


def _polar(shape: str) -> tuple[list[float], list[float]]:
    """Corners as angles and distances; 1 is about the radius of the circle with the same weight."""
    up = -math.pi / 2
    if shape == "square":
        return [math.pi / 4 + k * math.pi / 2 for k in range(4)], [1.25] * 4
    if shape == "triangle":
        return [up + k * 2 * math.pi / 3 for k in range(3)], [1.35] * 3
    if shape == "star":
        return [up + k * math.pi / 5 for k in range(10)], [1.3, 0.55] * 5
    if shape == "cross":
        tip, notch = math.atan2(0.36, 1.15), math.pi / 4
        turns = [k * math.pi / 2 for k in range(4)]
        return (
            [t + a for t in turns for a in (-tip, tip, notch)],
            [math.hypot(0.36, 1.15), math.hypot(0.36, 1.15), math.hypot(0.36, 0.36)] * 4,
        )
    around = [k * 2 * math.pi / 72 for k in range(72)]
    if shape == "flower":
        return around, [0.6 + 0.6 * abs(math.cos(2.5 * (a - up))) for a in around]
    return around, [1.0] * 72


def _place(
    canvas: Image.Image,
    shape: str,
    colour: str,
    texture: str,
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Paint one object with a thin dark edge, so that it stands out on every background."""
    shade = rng.uniform(0.94, 1.06)
    fill, dark = _shaded(RGB[colour], shade), _shaded(RGB[colour], 0.45)
    turn = rng.uniform(-0.12, 0.12)
    points = [
        ((centre[0] + px) * OVERSAMPLE, (centre[1] + py) * OVERSAMPLE) for px, py in outline(shape, radius, turn)
    ]
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    box = mask.getbbox()  # pasting into the whole canvas would take most of the time
    canvas.paste(fill, box, mask.crop(box))
    if texture != "plain":
        canvas.paste(dark, box, ImageChops.darker(_pattern(texture, rng), mask).crop(box))
    ImageDraw.Draw(canvas).line([*points, points[0]], fill=dark, width=OVERSAMPLE)


def _pattern(texture: str, rng: np.random.Generator) -> Image.Image:
    """Return the dark part of a texture over the whole canvas, shifted at random."""
    left, upper = (int(offset) for offset in rng.integers(0, 8 * OVERSAMPLE, 2))
    side = SIDE * OVERSAMPLE
    return _tiling(texture).crop((left, upper, left + side, upper + side))


@cache
def _tiling(texture: str) -> Image.Image:
    """Return stripes, dots or checks, 8 pixels larger than the canvas so that it can be shifted."""
    side = (SIDE + 8) * OVERSAMPLE
    y, x = np.mgrid[0:side, 0:side] / OVERSAMPLE
    if texture == "striped":
        dark = (x + y) % 7.0 < 2.8
    elif texture == "dotted":
        dark = np.hypot(x % 6.0 - 3.0, y % 6.0 - 3.0) < 1.6
    else:
        dark = (x // 4 + y // 4) % 2 < 1
    return Image.fromarray(np.where(dark, 255, 0).astype(np.uint8))


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    """A grey of about the named brightness, a little lighter on one side than on the other."""
    side = SIDE * OVERSAMPLE
    slope = np.linspace(-1, 1, side, dtype=np.float32)[:, None] * rng.uniform(-10, 10)
    row = np.clip(np.asarray(BACKGROUND_RGB[name], dtype=np.float32) + slope, 0, 255).astype(np.uint8)
    return Image.fromarray(np.tile(row, (side, 1, 1)))


def _beside(x: float, y: float, radius: float, relation: str, rng: np.random.Generator) -> tuple[float, float]:
    """Centre of the second object, kept inside the picture even if the main object then hides a part of it."""
    along, across = radius + SECONDARY_RADIUS + 1.0, rng.uniform(-5, 5)
    dx, dy = DIRECTION[relation]
    low, high = SECONDARY_RADIUS + 1, SIDE - SECONDARY_RADIUS - 1
    return (
        min(max(x + dx * along + dy * across, low), high),
        min(max(y + dy * along + dx * across, low), high),
    )


def _shaded(rgb: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255, round(value * factor)) for value in rgb)
    return red, green, blue
