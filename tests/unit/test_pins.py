"""A pin holds for what is read, not only for what was there when it was checked."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.daemon import DEMO_MODEL
from tests.support.reference import make_small_model
from weave.gpu_worker import loading
from weave.models.assets import Source
from weave.models.files import ModelFilesRefused
from weave.models.pins import check_pins, pinned

FILE = Path("unet/weights")
GOOD, EVIL = b"good", b"evil"
PINS = {str(FILE): hashlib.sha256(GOOD).hexdigest()}


def test_a_file_that_differs_from_its_pin_is_refused() -> None:
    with pytest.raises(ModelFilesRefused, match=r"unet/config.json: sha256 is"):
        check_pins(DEMO_MODEL, {"unet/config.json": "0" * 64})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With a folder and a file of the attacker's beside the pinned one."""
    model = tmp_path / "model"
    for folder in ("unet", "other"):
        (model / folder).mkdir(parents=True)
    (model / FILE).write_bytes(GOOD)
    (model / "other/weights").write_bytes(EVIL)
    return model


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def by_renaming_the_file(model: Path) -> Callable[[], None]:
    exchange(model / FILE, model / "other/weights")
    return lambda: exchange(model / FILE, model / "other/weights")


def by_renaming_its_folder(model: Path) -> Callable[[], None]:
    exchange(model / "unet", model / "other")
    return lambda: exchange(model / "unet", model / "other")


def by_renaming_the_model(model: Path) -> Callable[[], None]:
    other = shutil.copytree(model, model.with_name("other_model"), symlinks=True)
    (other / FILE).write_bytes(EVIL)
    exchange(model, other)
    return lambda: exchange(model, other)


def by_writing_into_it(model: Path) -> Callable[[], None]:
    before = (model / FILE).stat()

    def write(content: bytes) -> None:
        (model / FILE).write_bytes(content)
        os.utime(model / FILE, ns=(before.st_atime_ns, before.st_mtime_ns))

    write(EVIL)
    return lambda: write(GOOD)


def by_another_link(model: Path) -> Callable[[], None]:
    exchange(model / FILE, model / "link")
    return lambda: exchange(model / FILE, model / "link")


@pytest.mark.parametrize(
    "attack", [by_renaming_the_file, by_renaming_its_folder, by_renaming_the_model, by_writing_into_it, by_another_link]
)
@pytest.mark.parametrize("put_back", [True, False])
def test_what_was_exchanged_while_it_was_read_is_refused(
    model: Path, attack: Callable[[Path], Callable[[], None]], put_back: bool
) -> None:
    (model / "link").symlink_to("../other/weights")
    refused = pytest.raises(ModelFilesRefused, match="pinned by sha256, but it or its folder changed while it was read")
    with refused, pinned(model, PINS):
        restore = attack(model)
        assert (model / FILE).read_bytes() == EVIL
        if put_back:
            restore()
            assert (model / FILE).read_bytes() == GOOD


def test_a_file_that_was_read_in_peace_is_not(model: Path) -> None:
    with pinned(model, PINS):
        assert (model / FILE).read_bytes() == GOOD


def test_a_file_that_vanished_meanwhile_is_refused(model: Path) -> None:
    with pytest.raises(ModelFilesRefused, match="No such file"), pinned(model, PINS):
        (model / FILE).unlink()


FILES = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")


def load_and_exchange(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, pins: tuple[str, ...]) -> None:
    """Another file of the same content takes the place of the file `name` once the load has begun."""
    model = make_small_model("sd1", folder / "model")
    digests = {pin: hashlib.sha256((model / pin).read_bytes()).hexdigest() for pin in pins}
    (folder / "copy").write_bytes((model / name).read_bytes())
    load = loading._load_tokenizer

    def exchanged(*given: Any) -> Any:
        (folder / "copy").replace(model / name)
        return load(*given)

    monkeypatch.setattr(loading, "_load_tokenizer", exchanged)
    assert loading.load_pipeline("sd1", Source(model), torch.device("cpu"), torch.float32, digests).vae is not None


@pytest.mark.parametrize("name", FILES)
def test_a_model_exchanged_while_it_loads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(ModelFilesRefused, match="pinned by sha256, but it or its folder changed"):
        load_and_exchange(tmp_path, monkeypatch, name, FILES)


@pytest.mark.parametrize("name", FILES)
def test_without_a_pin_an_exchange_is_not_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    load_and_exchange(tmp_path, monkeypatch, name, ())
