import random

import pytest

from tests.support.shapes_checker import look
from training.shapes.data import draw, scenes


@pytest.mark.parametrize("seed", range(3))
def test_the_checker_recognises_rendered_shapes(seed: int) -> None:
    everything = [scene for part in scenes() for scene in part]
    rng = random.Random(seed)
    wrong = [(scene, look(draw(scene, rng))) for scene in everything]
    wrong = [(scene, seen) for scene, seen in wrong if tuple(scene) != tuple(seen)]
    assert len(wrong) <= len(everything) // 100, wrong
