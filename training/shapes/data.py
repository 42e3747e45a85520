"""The pictures and captions that the demo model learns from, all drawn here: no outside data, so no licence."""

import itertools
import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128
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
# From the second shape to the first, in units of the picture, y downwards.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
HELD_OUT_COUNT = 100

# In pixels of 128: where centres may be, across and down.
_MIDDLE = (48, 64, 80)
_NEAR, _FAR = 32, 96
_RADIUS = 28
# In varied pictures.
_RADII, _RADIUS_OF_TWO = (32, 40), 26

_PHRASINGS = (
    "{things} on {a_background} background",
    "{things} on {background}",
    "{a_background} background with {things}",
    "{things}, {background} background",
)
# What a caption without a background means: the first of these that is no shape's colour.
_DEFAULT_BACKGROUNDS = ("white", "black", "blue")


class Thing(NamedTuple):
    """One coloured shape."""

    colour: str
    shape: str


class Scene(NamedTuple):
    """The content of one picture: one thing, or two with the relation of the first to the second."""

    background: str
    first: Thing
    relation: str | None = None
    second: Thing | None = None

    def things(self) -> list[Thing]:
        """The one or two things, in the caption's order."""
        return [self.first] if self.second is None else [self.first, self.second]

    def prompt(self) -> str:
        """The scene in the words of the README."""
        return self._phrase(_PHRASINGS[0], True)

    def caption(self, rng: random.Random) -> str:
        """The scene in one of several phrasings; without the background, now and then, where it is the default."""
        default = self.background == default_background(self.things())
        phrasing = "{things}" if default and rng.random() < 0.6 else rng.choice(_PHRASINGS)
        return self._phrase(phrasing, articles=rng.random() < 0.75)

    def _phrase(self, phrasing: str, articles: bool) -> str:
        words = [f"{thing.colour} {thing.shape}" for thing in self.things()]
        things = f" {self.relation} ".join(map(_with_article, words) if articles else words)
        return phrasing.format(things=things, background=self.background, a_background=_with_article(self.background))


def default_background(things: list[Thing]) -> str:
    """The background of a caption that names none."""
    colours = {thing.colour for thing in things}
    return next(background for background in _DEFAULT_BACKGROUNDS if background not in colours)


def held_out_singles() -> list[Scene]:
    """HELD_OUT_COUNT of the 224 scenes with one visible shape, which training never sees."""
    return _split_singles()[0]


def held_out_pairs() -> list[Scene]:
    """A scene for each of HELD_OUT_COUNT pairs of things, which training never shows together in any scene."""
    rng = random.Random(20260903)
    return [_pair(sorted_pair, rng) for sorted_pair in _split_pairs()[0]]


class Training:
    """Chooses scenes at random, none of them held out. Half of them have two shapes. With `hard` more have one, and
    that is a star more often: these are the last to become crisp."""

    def __init__(self, rng: random.Random, *, hard: bool = False):
        self._rng, self._hard = rng, hard
        self._singles = _split_singles()[1]
        self._default_singles = [s for s in self._singles if s.background == default_background(s.things())]
        self._pairs = _split_pairs()[1]

    def scene(self) -> Scene:
        """One scene."""
        scene = self._scene()
        while self._hard and self._rng.random() > _kept_if_hard(scene):
            scene = self._scene()
        return scene

    def _scene(self) -> Scene:
        if self._rng.random() < 0.45:
            return self._rng.choice(self._default_singles if self._rng.random() < 0.2 else self._singles)
        return _pair(self._rng.choice(self._pairs), self._rng)


def _kept_if_hard(scene: Scene) -> float:
    if scene.second is not None:
        return 0.4
    return 1.0 if scene.first.shape == "star" else 0.6


def draw(scene: Scene, rng: random.Random, side: int = SIDE, *, varied: bool = True) -> np.ndarray:
    """A picture of the scene: uint8, side x side x 3. Two shapes never touch. The autoencoder learns from `varied`
    places and sizes. The UNet learns one size, and one place for each of two shapes, which takes it far less time."""
    big = side * _SUPERSAMPLING
    picture = Image.new("RGB", (big, big), COLOURS[scene.background])
    painter = ImageDraw.Draw(picture)
    for thing, (x, y, size) in zip(scene.things(), _places(scene.relation, rng, side, varied), strict=True):
        _paint(painter, thing, x * _SUPERSAMPLING, y * _SUPERSAMPLING, size * _SUPERSAMPLING)
    return np.asarray(picture.reduce(_SUPERSAMPLING))


def _split_singles() -> tuple[list[Scene], list[Scene]]:
    everything = [
        Scene(background, Thing(colour, shape))
        for shape, colour, background in itertools.product(SHAPES, COLOURS, COLOURS)
        if colour != background
    ]
    random.Random(20260901).shuffle(everything)
    return everything[:HELD_OUT_COUNT], everything[HELD_OUT_COUNT:]


def _split_pairs() -> tuple[list[tuple[Thing, Thing]], list[tuple[Thing, Thing]]]:
    things = [Thing(*parts) for parts in itertools.product(COLOURS, SHAPES)]
    everything = list(itertools.combinations(things, 2))
    random.Random(20260902).shuffle(everything)
    return everything[:HELD_OUT_COUNT], everything[HELD_OUT_COUNT:]


def _pair(things: tuple[Thing, Thing], rng: random.Random) -> Scene:
    first, second = rng.sample(things, 2)
    backgrounds = [name for name in COLOURS if name not in (first.colour, second.colour)]
    background = default_background([first, second]) if rng.random() < 0.25 else rng.choice(backgrounds)
    return Scene(background, first, rng.choice(tuple(RELATIONS)), second)


def _places(relation: str | None, rng: random.Random, side: int, varied: bool) -> list[tuple[int, int, int]]:
    """x, y and radius of each thing, in pixels. Centres are where four latents meet."""
    if relation is None:
        places = [(rng.choice(_MIDDLE), rng.choice(_MIDDLE), rng.choice(_RADII) if varied else _RADIUS)]
    else:
        dx, dy = RELATIONS[relation]
        ends = (_NEAR, _FAR) if dx + dy < 0 else (_FAR, _NEAR)
        radius = _RADIUS_OF_TWO if varied else _RADIUS
        along = [(end, rng.choice(_MIDDLE) if varied else SIDE // 2, radius) for end in ends]
        places = [(x, y, r) if dx else (y, x, r) for x, y, r in along]
    return [(x * side // SIDE, y * side // SIDE, r * side // SIDE) for x, y, r in places]


def _paint(painter: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float) -> None:
    fill = COLOURS[thing.colour]
    if thing.shape == "circle":
        painter.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
    elif thing.shape == "square":
        half = radius * 0.86
        painter.rectangle((x - half, y - half, x + half, y + half), fill)
    else:
        painter.polygon(_corners(thing.shape, x, y, radius), fill)


def _corners(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    radii = [radius] * 3 if shape == "triangle" else [radius, radius * 0.42] * 5
    step = 2 * math.pi / len(radii)
    return [(x + r * math.sin(i * step), y - r * math.cos(i * step)) for i, r in enumerate(radii)]


def _with_article(words: str) -> str:
    return f"{'an' if words.startswith('orange') else 'a'} {words}"
