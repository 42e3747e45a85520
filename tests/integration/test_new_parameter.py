"""A parameter is added as CONTRIBUTING.md says, to a build of the daemon: its declaration, the field in the task, and
the place where the worker passes it to the pipeline."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.seams import PACKAGE
from tests.support.system import MODEL

DECLARED = """    guidance_rescale: Annotated[
        float,
        Parameter(
            "how much to correct overexposure by guidance",
            FloatRange(0.0, 1.0),
            option="--guidance-rescale X",
            since="0.2.0",
            feature="guidance-rescale",
        ),
    ] = 0.0
"""
STEPS = "            num_inference_steps=parameters.steps,\n"
# By file within weave/: lines, and what they become.
ADDED = {
    "protocol/parameters.py": [
        ("    deliver: Annotated[\n", f"{DECLARED}    deliver: Annotated[\n"),
        ("    preview_every: int\n", "    preview_every: int\n    guidance_rescale: float\n"),
    ],
    "gpu_worker/passes.py": [
        (STEPS, f"{STEPS}            guidance_rescale=parameters.guidance_rescale,\n"),
    ],
}


def with_lines_replaced(file: str) -> str:
    source = (PACKAGE / file).read_text()
    for old, new in ADDED[file]:
        assert source.count(old) == 1, f"{file} does not have {old!r} once"
        source = source.replace(old, new)
    return source


@pytest.fixture(scope="module")
def command() -> tuple[str, ...]:
    return build((), {file: with_lines_replaced(file) for file in ADDED})


@pytest.fixture(scope="module")
def daemon(command: tuple[str, ...]) -> Iterator[Daemon]:
    started = Daemon(MODEL, command=command)
    yield started.wait_until_serving()
    assert started.stop() == 0


def weavectl(command: tuple[str, ...], daemon: Daemon, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The build's own."""
    start = "from weave.weavectl.main import main; main()"
    asked = [*command[: command.index("-m")], "-c", start, "--json", "--socket", str(daemon.socket), *arguments]
    return subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def generate(command: tuple[str, ...], daemon: Daemon, folder: Path, name: str, *options: str) -> Image.Image:
    asked = ("generate", "a red circle", "--steps=2", "--seed=1", "-o", name, *options)
    done = weavectl(command, daemon, folder, *asked)
    assert done.returncode == 0, done.stderr
    return Image.open(folder / name)


def test_its_option_reaches_the_pipeline_and_its_value_the_png(
    command: tuple[str, ...], daemon: Daemon, tmp_path: Path
) -> None:
    without = generate(command, daemon, tmp_path, "without.png")
    default = generate(command, daemon, tmp_path, "default.png", "--guidance-rescale=0")
    rescaled = generate(command, daemon, tmp_path, "rescaled.png", "--guidance-rescale=0.5")
    texts = [image.text["guidance_rescale"] for image in (without, default, rescaled)]  # type: ignore[attr-defined]
    assert texts == ["0.0", "0.0", "0.5"]
    assert np.array_equal(without, default) and not np.array_equal(without, rescaled)


def test_a_value_outside_its_bound_is_refused_by_name(command: tuple[str, ...], daemon: Daemon, tmp_path: Path) -> None:
    refused = weavectl(command, daemon, tmp_path, "generate", "x", "--guidance-rescale=2", "-o", "x.png")
    assert refused.returncode == 1 and list(tmp_path.iterdir()) == []
    error = json.loads(refused.stdout.splitlines()[-1])
    assert error["message"] == "guidance_rescale is 2.0; it must be from 0.0 to 1.0"
    assert (error["code"], error["field"], error["value"]) == ("out_of_bounds", "guidance_rescale", 2.0)


def test_clients_find_it_among_the_features(daemon: Daemon) -> None:
    with daemon.client() as client:
        assert "guidance-rescale" in client.status().features


def test_a_newer_client_works_with_a_daemon_without_it(
    command: tuple[str, ...], shared_daemon: Daemon, tmp_path: Path
) -> None:
    """It is not sent unless it is given; given, it is refused by name, and never ignored."""
    generate(command, shared_daemon, tmp_path, "image.png")
    refused = weavectl(command, shared_daemon, tmp_path, "generate", "x", "--guidance-rescale=0.5", "-o", "x.png")
    error = json.loads(refused.stdout.splitlines()[-1])
    assert (refused.returncode, error["code"], error["field"]) == (1, "invalid_request", "guidance_rescale")
