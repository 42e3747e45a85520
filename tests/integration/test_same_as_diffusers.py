"""Every family with every scheduler in every dtype, the first also with a negative prompt: the image equals that of
diffusers in every pixel. The last preview equals the image, and progress reports each step once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.reference import (
    FROM_TEXT,
    Reference,
    arguments,
    fitting,
    make_small_model,
    served_like_here,
    write_index,
)
from weave.client import Answer
from weave.protocol.client_messages import Preview, Progress

NAMES = tuple(name for name in FROM_TEXT if name != "sd2")  # it has sd1's pipeline
STEPS, SEED, SCALE = 3, 5, 4.0
PROMPT, NEGATIVE = "a red circle", "blurred, blue"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        write_index(name, make_small_model(name, folder / name))
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def served(models: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, str]]:
    tables = "".join(f'[models.{name}]\npath = "{models / name}"\nfamily = "{name}"\n' for name in NAMES)
    with served_like_here(tables, request.param) as daemon:
        yield daemon, request.param


@pytest.mark.parametrize("name", NAMES)
def test_an_image_equals_that_of_diffusers(served: tuple[Daemon, str], models: Path, name: str) -> None:
    daemon, dtype = served
    schedulers, plain = fitting(name), Reference(name, models / name, dtype)
    wanted = {"model": name, "width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
    with daemon.client() as client:
        for scheduler, negative in [(schedulers[0], NEGATIVE), *((scheduler, None) for scheduler in schedulers)]:
            generator = torch.Generator("cpu").manual_seed(SEED)
            expected = plain.generate(
                PROMPT, plain.scheduler(scheduler), generator, **arguments(name, negative, steps=STEPS, scale=SCALE)
            )
            more = {} if negative is None else {"negative_prompt": negative}
            answers = generate(client, PROMPT, scheduler=scheduler, preview_every=STEPS, **wanted, **more)
            assert expected.std() > 0
            assert np.array_equal(pixels(images(answers)[0]), expected), (scheduler, negative)
            check_progress(answers, scheduler)


def check_progress(answers: list[Answer], scheduler: str) -> None:
    steps = [answer.event.step for answer in answers if isinstance(answer.event, Progress)]
    assert steps == list(range(1, STEPS + 1)), scheduler
    (preview,) = [answer for answer in answers if isinstance(answer.event, Preview)]
    assert np.array_equal(pixels(preview), pixels(images(answers)[0])), scheduler
