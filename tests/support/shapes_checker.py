"""Recognises what an image of the demo model shows, by classical image processing, independent of the training code."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

REFERENCE = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 220, 40),
    "orange": (245, 140, 20),
    "purple": (140, 40, 170),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
_FOREGROUND = 40.0  # the least distance from the background's colour; yellow and orange are 82 apart
_SPECK, _SHAPE = 0.002, 0.01  # shares of the picture: smaller parts are ignored, parts below the second are no shape
_LIKE = 0.85  # the least overlap with an ideal shape, as a share of the union


class Found(NamedTuple):
    """A part that differs from the background. x and y are its centre of mass; `shape` may be `none`."""

    colour: str
    shape: str
    x: float
    y: float


class Seen(NamedTuple):
    """The background's colour, and every part that differs from it."""

    background: str
    parts: list[Found]

    def shows(
        self,
        background: str,
        first: tuple[str, str],
        relation: str | None = None,
        second: tuple[str, str] | None = None,
    ) -> bool:
        """Whether it shows this and nothing else. `first` and `second` are colour and shape."""
        wanted = [first] if second is None else [first, second]
        if self.background != background or len(self.parts) != len(wanted):
            return False
        if relation is None:
            return self.parts[0][:2] == first
        return any(
            one[:2] == first and other[:2] == second and _relation(one, other) == relation
            for one, other in (self.parts, self.parts[::-1])
        )


def look(picture: np.ndarray) -> Seen:
    """`picture` is uint8, height x width x 3."""
    if min(picture.shape[:2]) < 128:  # else the points of small stars would be lost
        size = (picture.shape[1] * 2, picture.shape[0] * 2)
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    values = picture.astype(float)
    border = np.concatenate([values[:3].reshape(-1, 3), values[-3:].reshape(-1, 3), values[:, :3].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    distance = np.linalg.norm(values - ground, axis=2)
    parts = _parts(distance > _FOREGROUND)
    found = [_found(part, distance, values) for part in parts if part.sum() > _SPECK * distance.size]
    return Seen(_name(ground), found)


def _found(part: np.ndarray, distance: np.ndarray, values: np.ndarray) -> Found:
    """The edge of a shape is where its colour and the background's are mixed half and half."""
    blob = part & (distance > np.median(distance[part]) / 2)
    y, x = (values.mean() for values in np.nonzero(blob))
    shape = _shape(blob) if blob.sum() > _SHAPE * distance.size else "none"
    return Found(_name(np.median(values[blob], axis=0)), shape, float(x), float(y))


def _relation(one: Found, other: Found) -> str:
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _name(colour: np.ndarray) -> str:
    return min(REFERENCE, key=lambda name: float(np.linalg.norm(colour - np.array(REFERENCE[name]))))


def _shape(blob: np.ndarray) -> str:
    """Which ideal shape overlaps most with it, if of the same area and at the same place. Points that are a little
    blunt matter as little as they do to the eye; they would matter if boxes were compared."""
    grid: np.ndarray = np.indices(blob.shape)
    rows, columns = grid[0], grid[1]
    unit = math.sqrt(blob.sum())
    x, y = (columns - columns[blob].mean()) / unit, (rows - rows[blob].mean()) / unit
    overlaps = {name: _overlap(blob, ideal(x, y)) for name, ideal in _IDEALS.items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] > _LIKE else "none"


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


# Each ideal shape has an area of 1 and its centre of mass at 0, 0. y goes down.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.hypot(x, y) <= math.sqrt(1 / math.pi)
    return inside


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.maximum(np.abs(x), np.abs(y)) <= 0.5
    return inside


def _pointed(x: np.ndarray, y: np.ndarray, points: int, inner: float) -> np.ndarray:
    """One point is up. `inner` is the notches' distance from the centre, as a share of the points'. Each point is two
    triangles, mirrored; a pixel's angle says in which it would be."""
    half = math.pi / points
    from_point = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    distance = np.hypot(x, y) * math.sqrt(points * inner * math.sin(half))
    across, along = distance * np.sin(from_point), distance * np.cos(from_point)
    inside: np.ndarray = across * (1 - inner * math.cos(half)) <= inner * math.sin(half) * (1 - along)
    return inside


_IDEALS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": partial(_pointed, points=3, inner=0.5),
    "star": partial(_pointed, points=5, inner=0.4),
}


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """The parts of `mask` whose pixels touch side by side."""
    parts, left = [], mask.copy()
    while left.any():
        part = np.zeros_like(mask)
        part[tuple(np.argwhere(left)[0])] = True
        while True:
            grown = part.copy()
            grown[1:] |= part[:-1]
            grown[:-1] |= part[1:]
            grown[:, 1:] |= part[:, :-1]
            grown[:, :-1] |= part[:, 1:]
            grown &= left
            if (grown == part).all():
                break
            part = grown
        left &= ~part
        parts.append(part)
    return parts
