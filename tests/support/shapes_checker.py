"""Says what a demo picture shows, by classical image processing; knows nothing of how the pictures were made."""

from typing import NamedTuple

import numpy as np

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


class Seen(NamedTuple):
    """What is in the picture; shape is `none` where nothing stands out."""

    shape: str
    colour: str
    background: str


def look(picture: np.ndarray) -> Seen:
    """`picture` is uint8, 64 x 64 x 3."""
    values = picture.astype(float)
    border = np.concatenate([values[:3].reshape(-1, 3), values[-3:].reshape(-1, 3), values[:, :3].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    distance = np.linalg.norm(values - ground, axis=2)
    blob = _largest(distance > max(40.0, distance.max() / 2))
    if blob.sum() < 60:
        return Seen("none", _name(ground), _name(ground))
    return Seen(_shape(blob), _name(np.median(values[blob], axis=0)), _name(ground))


def _name(colour: np.ndarray) -> str:
    return min(REFERENCE, key=lambda name: float(np.linalg.norm(colour - np.array(REFERENCE[name]))))


def _shape(blob: np.ndarray) -> str:
    """How much of its box and of its convex hull the blob fills: a star little of its hull; then by the box a
    triangle half, a circle pi/4, a square all."""
    rows, columns = np.nonzero(blob)
    box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    if blob.sum() / _hull_area(rows, columns) < 0.8:
        return "star"
    extent = blob.sum() / box
    return "triangle" if extent < 0.66 else "circle" if extent < 0.885 else "square"


def _hull_area(rows: np.ndarray, columns: np.ndarray) -> float:
    """Of the pixels' corners: monotone chain, then the shoelace formula."""
    corners = {
        (x + dx, y + dy) for x, y in zip(columns.tolist(), rows.tolist(), strict=True) for dx in (0, 1) for dy in (0, 1)
    }
    points = sorted(corners)
    hull = [*_half_hull(points)[:-1], *_half_hull(points[::-1])[:-1]]
    pairs = zip(hull, hull[1:] + hull[:1], strict=True)
    return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)) / 2


def _half_hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    half: list[tuple[int, int]] = []
    for x, y in points:
        while len(half) > 1:
            (ax, ay), (bx, by) = half[-2:]
            if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                break
            half.pop()
        half.append((x, y))
    return half


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest part of `mask` whose pixels touch side by side."""
    best, left = np.zeros_like(mask), mask.copy()
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
        best = part if part.sum() > best.sum() else best
    return best
