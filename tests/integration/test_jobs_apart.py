"""No job affects the next one's image, in any family."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.builds import build
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.reference import FROM_TEXT, fitting, make_small_model, write_index
from tests.support.seams import after, before
from weave.client import Client, WeaveError
from weave.protocol.client_messages import Progress
from weave.protocol.errors import ErrorCode

NAMES = tuple(name for name in FROM_TEXT if name != "sd2")  # it has sd1's pipeline
# Only in float16 is the VAE of SDXL float32 for a while.
CASES = (*((name, "float32") for name in NAMES), ("sdxl", "float16"))
# A job of this width fails while it is decoded.
FAILING = 128
FAILURE = before("gpu_worker/decode.py", "decode", f"if width == {FAILING}:\n    latents = latents[:, :1]")

# What a job imports.
STARTED = before("gpu_worker/serve.py", "serve", "import sys\nsys.modules_before = set(sys.modules)")
IMPORTED = after(
    "gpu_worker/generation.py",
    "generate",
    """
    import sys
    from weave import log
    found = sorted(set(sys.modules) - sys.modules_before)
    log.write("worker", "imported_by_job", model=generation.model.id, found=found)
    """,
)


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    folder, command = tmp_path_factory.mktemp("models"), build((FAILURE, STARTED, IMPORTED))
    tables = ""
    for name in NAMES:
        write_index(name, make_small_model(name, folder / name))
        tables += f'[models.{name}]\npath = "{folder / name}"\nfamily = "{name}"\n'
    started: dict[str, Daemon] = {}
    try:
        for dtype in ("float32", "float16"):
            config = f'[device]\ndevice = "cpu"\nthreads = 1\ndtype = "{dtype}"\n{tables}'
            started[dtype] = Daemon(config, command=command)
        yield started
    finally:
        for daemon in started.values():
            daemon.stop()


@pytest.mark.parametrize("name, dtype", CASES)
def test_an_image_does_not_depend_on_earlier_jobs(daemons: dict[str, Daemon], name: str, dtype: str) -> None:
    daemon = daemons[dtype].wait_until_serving()
    # The first step of each scheduler starts from a fresh state. Four steps use what a step leaves behind.
    wanted = {"model": name, "width": 64, "height": 64, "steps": 4, "seed": 7, "cfg_scale": 4.0}
    with daemon.client() as client:
        first = {scheduler: image(client, **wanted, scheduler=scheduler) for scheduler in fitting(name)}
        worker = daemon.pid_of("worker")
        for disturb in disturbances(client, wanted):
            disturb()
            for scheduler, expected in first.items():
                assert np.array_equal(image(client, **wanted, scheduler=scheduler), expected), scheduler
        assert daemon.pid_of("worker") == worker  # one worker generated all of them


@pytest.mark.parametrize("name", NAMES)
def test_neither_loading_nor_a_job_imports_anything(daemons: dict[str, Daemon], name: str) -> None:
    daemon = daemons["float32"].wait_until_serving()
    with daemon.client() as client:
        image(client, model=name, width=64, height=64, steps=2)
    lines = wait_for(lambda: [line for line in daemon.events("imported_by_job") if line["model"] == name])
    assert [line["found"] for line in lines] == [[]] * len(lines)


def image(client: Client, **wanted: Any) -> np.ndarray:
    generated = pixels(images(generate(client, **wanted))[0])
    assert generated.std() > 0
    return generated


def disturbances(client: Client, wanted: dict[str, Any]) -> Iterator[Any]:
    yield lambda: generate(client, **wanted, preview_every=1, negative_prompt="blurred")
    yield lambda: generate(client, **wanted | {"width": 96, "height": 64, "steps": 2, "cfg_scale": 0.0, "images": 2})
    yield lambda: fail(client, wanted)
    yield lambda: cancel(client, wanted)


def fail(client: Client, wanted: dict[str, Any]) -> None:
    for preview_every in (0, 1):
        with pytest.raises(WeaveError) as failed:
            generate(client, **wanted | {"width": FAILING, "preview_every": preview_every})
        assert failed.value.code is ErrorCode.INTERNAL


def cancel(client: Client, wanted: dict[str, Any]) -> None:
    """Between two steps, of a hundred."""
    answers = client.generate("x", **wanted | {"steps": 100, "negative_prompt": "y"})
    for answer in answers:
        if isinstance(answer.event, Progress):
            break
    answers.close()  # type: ignore[attr-defined]
