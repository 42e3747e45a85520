import random

import numpy as np
import pytest

from tests.support.shapes_checker import look
from training.shapes.data import SIDE, Scene, Thing, Training, draw, held_out_pairs, held_out_singles


def some_scenes() -> list[Scene]:
    chooser = Training(random.Random(0))
    return held_out_singles() + held_out_pairs() + [chooser.scene() for _ in range(100)]


@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
def test_the_checker_recognises_rendered_shapes(side: int) -> None:
    scenes, rng = some_scenes(), random.Random(side)
    for scene, seen in [(scene, look(draw(scene, rng, side))) for scene in scenes]:
        assert {other for other in scenes if seen.shows(*other)} <= {scene, mirrored(scene)}, (scene, seen)
        assert seen.shows(*scene), (scene, seen)


def mirrored(scene: Scene) -> Scene:
    """The same scene, told from the second thing."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    if scene.relation is None or scene.second is None:
        return scene
    return Scene(scene.background, scene.second, opposite[scene.relation], scene.first)


RED_CIRCLE = Scene("white", Thing("red", "circle"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda picture: picture[30:60, 50:78].fill(245),  # a bite
        lambda picture: picture[5:20, 5:20].fill(20),  # a second thing
        lambda picture: picture[110:116, 5:13].fill(20),  # a spot
        lambda picture: picture[:64].fill(245),  # half of it
        lambda picture: picture.fill(245),  # nothing
    ],
)
def test_a_damaged_circle_is_not_recognised(damage: object) -> None:
    picture = np.full((SIDE, SIDE, 3), 245, np.uint8)
    y, x = np.indices((SIDE, SIDE))
    picture[np.hypot(x - 64, y - 64) < 30] = (220, 30, 30)
    assert look(picture).shows(*RED_CIRCLE)
    damage(picture)  # type: ignore[operator]
    assert not look(picture).shows(*RED_CIRCLE)
