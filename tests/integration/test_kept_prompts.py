"""A prompt that a worker has cached is not encoded again, in any family, and the images equal those of diffusers, which
encodes it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import make_small_model, write_index
from tests.support.seams import before
from weave.models.families import FAMILIES
from weave.protocol.inputs import TEXT_TO_IMAGE

# Not sd2, which has sd1's pipeline, nor families whose encoder also sees images: what depends on those is not kept.
NAMES = tuple(name for name, family in FAMILIES.items() if name != "sd2" and TEXT_TO_IMAGE in family.tasks)
WANTED = {"width": 64, "height": 64, "steps": 2, "seed": 5, "cfg_scale": 4.0}
# Each call of a text encoder is logged.
COUNTED = before(
    "gpu_worker/generation.py",
    "generate",
    """
    from weave import log
    for part in generation.adapter.family.components:
        encoder = getattr(generation.pipeline, part, None)
        if part.startswith("text_encoder") and encoder is not None and not encoder._forward_pre_hooks:
            encoder.register_forward_pre_hook(lambda module, inputs: log.write("worker", "encoded"))
    """,
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    tables = ""
    for name in NAMES:
        write_index(name, make_small_model(name, folder / name))
        tables += f'[models.{name}]\npath = "{folder / name}"\nfamily = "{name}"\n'
    config = f'[device]\ndevice = "cpu"\nthreads = 1\ndtype = "float32"\n{tables}'
    started = Daemon(config, command=build((COUNTED,))).wait_until_serving()
    try:
        yield started
    finally:
        started.stop()


def made(daemon: Daemon, prompt: str, **wanted: Any) -> tuple[np.ndarray, int]:
    """The image, and how often a text encoder was called for it."""
    before_it = len(daemon.events("encoded"))
    with daemon.client() as client:
        (image,) = images(generate(client, prompt, **{**WANTED, **wanted}))
    return pixels(image), len(daemon.events("encoded")) - before_it


@pytest.mark.parametrize("name", NAMES)
def test_the_same_prompt_is_encoded_once(daemon: Daemon, name: str) -> None:
    first, calls = made(daemon, "a red circle", model=name)
    again, calls_again = made(daemon, "a red circle", model=name)
    other_seed, calls_of_seed = made(daemon, "a red circle", model=name, seed=6)
    other, calls_of_other = made(daemon, "a blue square", model=name)
    assert calls > 0 and calls_of_other > 0
    assert (calls_again, calls_of_seed) == (0, 0)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_seed) and not np.array_equal(first, other)


@pytest.mark.parametrize("changed", [{"negative_prompt": "blue"}, {"cfg_scale": 1.0}, {"batch": 2, "images": 2}])
def test_what_an_encoding_depends_on_is_not_mixed_up(daemon: Daemon, changed: dict[str, Any]) -> None:
    """sd1 encodes both prompts at once, and repeats them for each image of a pass."""
    wanted = {**WANTED, "model": "sd1", **changed}
    with daemon.client() as client:
        generate(client, "a green cross", **{**WANTED, "model": "sd1"})
        after_another = [pixels(image) for image in images(generate(client, "a green cross", **wanted))]
        generate(client, model="sd1", **WANTED)
        client.unload()
        alone = [pixels(image) for image in images(generate(client, "a green cross", **wanted))]
    assert all(np.array_equal(*pair) for pair in zip(after_another, alone, strict=True))
