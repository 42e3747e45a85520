"""The pictures and captions that the demo model learns from, all drawn here: no outside data, so no licence."""

import itertools
import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64
_SUPERSAMPLING = 4

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 220, 40),
    "orange": (245, 140, 20),
    "purple": (140, 40, 170),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}

_PHRASINGS = (
    "a {colour} {shape} on a {background} background",
    "{colour} {shape} on a {background} background",
    "a {colour} {shape} on {background}",
    "a {background} background with a {colour} {shape}",
    "{colour} {shape}, {background} background",
)

HELD_OUT_COUNT = 60


class Scene(NamedTuple):
    """What one picture shows."""

    shape: str
    colour: str
    background: str

    def prompt(self) -> str:
        """The scene in the words of the README."""
        return _PHRASINGS[0].format(**self._asdict())


def scenes() -> tuple[list[Scene], list[Scene]]:
    """All scenes whose shape can be seen, split into those to train on and the HELD_OUT_COUNT never trained on."""
    everything = [Scene(*parts) for parts in itertools.product(SHAPES, COLOURS, COLOURS) if parts[1] != parts[2]]
    random.Random(20260901).shuffle(everything)
    return everything[HELD_OUT_COUNT:], everything[:HELD_OUT_COUNT]


def caption(scene: Scene, rng: random.Random) -> str:
    """The scene in one of several phrasings."""
    return rng.choice(_PHRASINGS).format(**scene._asdict())


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """A picture of the scene at a random place and size: uint8, SIDE x SIDE x 3."""
    side = SIDE * _SUPERSAMPLING
    picture = Image.new("RGB", (side, side), _vary(COLOURS[scene.background], rng))
    radius = side * rng.uniform(0.22, 0.36)
    x, y = (rng.uniform(radius * 1.1, side - radius * 1.1) for _ in range(2))
    fill = _vary(COLOURS[scene.colour], rng)
    painter = ImageDraw.Draw(picture)
    if scene.shape == "circle":
        painter.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
    elif scene.shape == "square":
        half = radius * 0.86
        painter.rectangle((x - half, y - half, x + half, y + half), fill)
    else:
        painter.polygon(_corners(scene.shape, x, y, radius), fill)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def _corners(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    radii = [radius] * 3 if shape == "triangle" else [radius, radius * 0.42] * 5
    step = 2 * math.pi / len(radii)
    return [(x + r * math.sin(i * step), y - r * math.cos(i * step)) for i, r in enumerate(radii)]


def _vary(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, ...]:
    return tuple(min(255, max(0, channel + rng.randint(-8, 8))) for channel in colour)
