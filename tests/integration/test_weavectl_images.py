"""weavectl with images from files and standard input, errors that name the option, and status --watch."""

import io
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.test_weavectl import COMMAND, weavectl
from tests.support.daemon import Daemon
from tests.support.fake_daemon import STATUS, FakeDaemon
from tests.support.generation import PROMPT, generate, images, pixels

QUICK = ("--model=shapes", "--steps=2", "--seed=1")
SHADES = np.tile(np.arange(128, dtype=np.uint8)[:, None, None], (1, 128, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an image, and a mask of its left half."""
    mask = np.zeros((128, 128), np.uint8)
    mask[:, :64] = 255
    Image.fromarray(SHADES).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "junk").write_text("junk")
    return tmp_path


def test_an_image_and_a_mask_come_from_files(shared_daemon: Daemon, folder: Path) -> None:
    files = ("--image", "image.png", "--mask", "mask.png", "--strength=0.5", "-o", "a.png")
    ended = weavectl(shared_daemon, "generate", PROMPT, *QUICK, *files, folder=folder)
    assert ended.returncode == 0, ended.stderr
    found = np.asarray(Image.open(folder / "a.png"))
    with shared_daemon.client() as client:
        asked = {"image": folder / "image.png", "mask": folder / "mask.png", "strength": 0.5}
        (expected,) = images(generate(client, steps=2, **asked))
    assert np.array_equal(found, pixels(expected)) and np.array_equal(found[:, 64:], SHADES[:, 64:])


def test_a_pipe_takes_one_image_and_gives_another(shared_daemon: Daemon, folder: Path) -> None:
    command = [COMMAND, "generate", PROMPT, *QUICK, "--image", "-", "--strength=0.5", "-o", "-"]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(shared_daemon.folder)}
    data = (folder / "image.png").read_bytes()
    ended = subprocess.run(command, input=data, capture_output=True, check=False, env=environment, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert Image.open(io.BytesIO(ended.stdout)).size == (128, 128)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no file": (("--image", "none.png"), "--image: none.png: No such file or directory"),
    "no image": (("--mask", "junk"), "--mask: junk is not a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or PPM image"),
    "a folder": (("--reference", "."), "--reference: .: Is a directory"),
    "an empty name": (("--image", ""), "argument --image: the path is empty"),
    "a control without a file": (("--control", "canny"), "argument --control: 'canny' is not ID=FILE"),
    "a control with a bad scale": (("--control", "canny:x=a.png"), "argument --control: 'x' is not a finite number"),
    "a control's file": (("--control", "canny:0.5=junk"), "--control: junk is not a PNG"),
    "a bad scale": (("--enlarge", "2:nan"), "argument --enlarge: 'nan' is not a finite number"),
    "standard input twice": (("--image", "-", "--mask", "-"), "only one file, and --image and --mask would read it"),
    "in a control too": (("--reference", "-", "--control", "a=-"), "--control and --reference would read it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_names_the_option_before_a_daemon_is_asked(folder: Path, name: str) -> None:
    options, message = REFUSED[name]
    command = [COMMAND, "-s", "no-socket", "generate", PROMPT, *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ended.returncode == 2 and message in ended.stderr


def test_a_refusal_names_the_parameter_and_its_bound(shared_daemon: Daemon, folder: Path) -> None:
    for options, message in (
        (("--strength=1.5",), "strength is 1.5; it must be from 0.0 to 1.0"),
        (("--mask", "mask.png"), "mask is only for requests with image"),
    ):
        ended = weavectl(shared_daemon, "generate", PROMPT, *QUICK, *options, folder=folder)
        assert ended.returncode == 1 and message in ended.stderr
        assert not (folder / "weave.png").exists()


def test_status_is_shown_until_interrupted(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "socket", lambda _: [STATUS]) as daemon:
        command = [COMMAND, "-s", daemon.path, "status", "--watch", "0.05"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert next(process.stdout) == "\n"
            for _ in range(3):
                assert next(process.stdout).startswith("version     1.0, user mode")
                while next(process.stdout) != "\n":
                    pass
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
    assert len(daemon.asked) >= 3
