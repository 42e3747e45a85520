"""weavectl repeat: the same pixels from what is in a PNG, one thing changed, and PNGs of other programs."""

import hashlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.integration.test_weavectl import COMMAND, weavectl
from tests.support.daemon import Daemon, wait_for
from tests.support.fake_daemon import STATUS, FakeDaemon
from tests.support.generation import generate, images
from weave.client import Answer

QUICK: dict[str, Any] = {"steps": 2, "seed": 2**64 - 1, "cfg_scale": 2.5, "scheduler": "dpmpp_2m_karras"}
TEXTS = 'a "red" circle,\non blue: <é> 🟥\nSteps: 5, Sampler: none'
SHADES = np.tile(np.arange(128, dtype=np.uint8)[:, None, None], (1, 128, 3))


def texts_of(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return dict(image.text)  # type: ignore[attr-defined]


def pixels_of(file: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return np.asarray(image)


def png(texts: dict[str, str], image: Image.Image | None = None) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_itxt(name, text)
    (image or Image.new("RGB", (8, 8))).save(file, "PNG", pnginfo=info)
    return file.getvalue()


class Original:
    """A PNG of the daemon in a folder, repeated with weavectl."""

    def __init__(self, daemon: Daemon, folder: Path, answer: Answer) -> None:
        self.daemon = daemon
        self.folder = folder
        self.data = answer.data
        (folder / "a.png").write_bytes(answer.data)

    def repeat(self, *options: str) -> subprocess.CompletedProcess[str]:
        return weavectl(self.daemon, "repeat", "a.png", "-f", "-o", "b.png", *options, folder=self.folder)

    def is_repeated(self, *options: str) -> bool:
        ended = self.repeat(*options)
        assert ended.returncode == 0, ended.stderr
        repeated = (self.folder / "b.png").read_bytes()
        same = texts_of(repeated) == texts_of(self.data)
        return same and np.array_equal(pixels_of(repeated), pixels_of(self.data))


@pytest.fixture(scope="module")
def plain(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Original:
    with shared_daemon.client() as client:
        (answer,) = images(generate(client, TEXTS, negative_prompt="no\ncats", **QUICK))
    return Original(shared_daemon, tmp_path_factory.mktemp("plain"), answer)


def test_repeat_gives_the_same_pixels_and_texts(plain: Original) -> None:
    assert plain.is_repeated()
    assert texts_of(plain.data)["prompt"] == TEXTS


def test_one_thing_can_be_changed(plain: Original) -> None:
    ended = plain.repeat("--set", "seed=7", "--set", "negative_prompt=")
    assert ended.returncode == 0 and "b.png (seed 7)" in ended.stdout, ended.stderr
    repeated = (plain.folder / "b.png").read_bytes()
    before, after = texts_of(plain.data), texts_of(repeated)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"seed", "negative_prompt", "tokens", "parameters"} and after["negative_prompt"] == ""
    with plain.daemon.client() as client:
        (answer,) = images(generate(client, TEXTS, **QUICK | {"seed": 7}))
    assert np.array_equal(pixels_of(answer.data), pixels_of(repeated))


WRONG_SETTINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown": (("--set", "sed=7"), "--set: 'sed' cannot be set; these can: prompt, "),
    "an image": (("--set", "image=a.png"), "--set: 'image' cannot be set"),
    "not in a PNG": (("--set", "images=2"), "--set: 'images' cannot be set"),
    "a wrong type": (("--set", "seed=x"), "--set seed is 'x'; it must be a whole number"),
    "a number as text": (("--set", 'cfg_scale="7"'), "--set cfg_scale is '\"7\"'; it must be a number"),
    "no value": (("--set", "seed"), "'seed' is not NAME=VALUE"),
    "out of bounds": (("--set", "steps=101"), "steps is 101; it must be from 1 to 100"),
    "an image too many": (("--image", "a.png"), "--image: the original was not generated from a.png"),
    "standard input twice": (("--image", "-", "--image", "-"), "standard input is only one file, and --image and"),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_a_wrong_setting_is_refused_by_name(plain: Original, name: str) -> None:
    options, message = WRONG_SETTINGS[name]
    ended = plain.repeat(*options)
    assert ended.returncode in (1, 2) and message in ended.stderr


@pytest.fixture(scope="module")
def repainted(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("repainted")
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    Image.fromarray(SHADES).save(folder / "image.png")
    Image.fromarray(mask).convert("RGB").save(folder / "mask.png")
    files = {"image": folder / "image.png", "mask": folder / "mask.png"}
    with shared_daemon.client() as client:
        (answer,) = images(generate(client, **files, strength=0.5, mask_padding=8, **QUICK))
    return Original(shared_daemon, folder, answer)


def test_inputs_are_recognised_by_their_pixels_in_any_order(repainted: Original) -> None:
    assert len(json.loads(texts_of(repainted.data)["inputs"])) == 2
    assert repainted.is_repeated("--image", "image.png", "--image", "mask.png")
    assert repainted.is_repeated("--image", "mask.png", "--image", "image.png")


def test_missing_and_other_inputs_are_refused_by_name(repainted: Original) -> None:
    image, mask = json.loads(texts_of(repainted.data)["inputs"])
    ended = repainted.repeat()
    assert ended.returncode == 2 and f"image (128x128, sha256 {image}), mask (128x128, sha256 {mask})" in ended.stderr
    other = SHADES.copy()
    other[0, 0, 0] += 1
    Image.fromarray(other).save(repainted.folder / "other.png")
    ended = repainted.repeat("--image", "other.png", "--image", "mask.png")
    text = f"--image: no file has the pixels of the original's image (128x128, sha256 {image}); other.png has 128x128, "
    assert ended.returncode == 2 and text in ended.stderr
    ended = repainted.repeat("--image", "image.png", "--image", "mask.png", "--image", "other.png")
    assert ended.returncode == 2 and "the original was not generated from other.png" in ended.stderr


def test_an_image_of_a_batch_is_repeated_with_the_others(shared_daemon: Daemon, tmp_path: Path) -> None:
    with shared_daemon.client() as client:
        answers = images(generate(client, **QUICK, images=3, batch=2))
    assert [json.loads(texts_of(answer.data).get("pass", "{}")) for answer in answers] == [
        *[{"seed": 2**64 - 1, "images": 2}] * 2, {}
    ]  # fmt: skip
    for answer in answers[1:]:
        original = Original(shared_daemon, tmp_path, answer)
        assert np.array_equal(pixels_of(tmp_path / "a.png"), pixels_of(answer.data))
        ended = original.repeat()
        assert ended.returncode == 0, ended.stderr
        assert np.array_equal(pixels_of(tmp_path / "b.png"), pixels_of(answer.data))
        assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_repeat_reads_and_writes_pipes(plain: Original) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(plain.daemon.folder)}
    ended = subprocess.run(
        [COMMAND, "repeat", "-", "-o", "-"], input=plain.data, capture_output=True, check=False, env=environment
    )
    assert ended.returncode == 0 and np.array_equal(pixels_of(ended.stdout), pixels_of(plain.data)), ended.stderr


def test_the_text_for_other_tools_says_the_same(plain: Original) -> None:
    (plain.folder / "theirs.png").write_bytes(png({"parameters": texts_of(plain.data)["parameters"]}))
    ended = weavectl(plain.daemon, "repeat", "theirs.png", "-f", "-o", "c.png", "--model=shapes", folder=plain.folder)
    assert ended.returncode == 0 and "not used: Model" in ended.stderr, ended.stderr
    assert np.array_equal(pixels_of(plain.folder / "c.png"), pixels_of(plain.data))


def test_another_programs_image_to_image_takes_any_image(repainted: Original) -> None:
    text = "a red circle\nSteps: 2, Sampler: Euler a, CFG scale: 2, Seed: 1, Size: 128x128, Denoising strength: 0.5"
    (repainted.folder / "theirs.png").write_bytes(png({"parameters": text}))
    command = ("repeat", "theirs.png", "-f", "-o", "c.png", "--model=shapes")
    ended = weavectl(repainted.daemon, *command, folder=repainted.folder)
    assert ended.returncode == 2 and "generated from images; give them with --image FILE: image" in ended.stderr
    ended = weavectl(repainted.daemon, *command, "--image", "image.png", folder=repainted.folder)
    assert ended.returncode == 0, ended.stderr
    found = texts_of((repainted.folder / "c.png").read_bytes())
    assert (found["scheduler"], found["strength"], found["seed"]) == ("euler_a", "0.5", "1")


# Others: tests/unit/test_recipe.py.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "no PNG": (b"GIF89a", "a.png: it is not a PNG"),
    "escapes": (png({"parameters": "x\nSteps: \x1b[31m1"}), r"its Steps is '\x1b[31m1'; it must be a whole number"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_png_is_a_clear_error(shared_daemon: Daemon, tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    (tmp_path / "a.png").write_bytes(data)
    ended = weavectl(shared_daemon, "repeat", "a.png", "-o", "b.png", folder=tmp_path)
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and "\x1b" not in ended.stderr and not (tmp_path / "b.png").exists()


def test_controls_and_references_go_where_they_were(tmp_path: Path) -> None:
    """A fake daemon says what it gets: the demo model has neither."""
    shades = {name: np.full((1, number + 1, 3), number, np.uint8) for number, name in enumerate("abcde")}
    for name, array in shades.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    sizes = [{"width": number + 1, "height": 1, "channels": 3} for number in range(5)]
    texts = {
        "Software": "weave-compute 0.2.0", "prompt": "x", "model": "m", "width": "64", "height": "64", "steps": "1",
        "cfg_scale": "1.0", "seed": "1", "scheduler": "ddim", "image": json.dumps(sizes[0]),
        "control": json.dumps([{"id": "edges", "image": sizes[1], "scale": 0.5}, {"id": "pose", "image": sizes[2]}]),
        "references": json.dumps(sizes[3:]),
        "inputs": json.dumps([hashlib.sha256(array.tobytes()).hexdigest() for array in shades.values()]),
    }  # fmt: skip
    (tmp_path / "original.png").write_bytes(png(texts))

    def answers(request: dict[str, Any]) -> list[Any]:
        if request["op"] == "status":
            return [STATUS | {"features": ["control", "input-images", "references"]}]
        return [{"event": "done"}]

    with FakeDaemon(tmp_path / "socket", answers) as daemon:
        given = [f"--image={name}.png" for name in "ecadb"]
        command = [COMMAND, "-s", daemon.path, "repeat", "original.png", "-o", "out.png", *given]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        wait_for(lambda: len(daemon.received) == 5)
    request = daemon.asked[-1]
    assert request["image"] == sizes[0] and request["references"] == sizes[3:]
    assert [(one["id"], one["image"], one["scale"]) for one in request["control"]] == [
        ("edges", sizes[1], 0.5), ("pose", sizes[2], 1.0)
    ]  # fmt: skip
    assert daemon.received == [array.tobytes() for array in shades.values()]
