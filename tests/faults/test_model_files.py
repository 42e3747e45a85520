"""Model files that vanish, are cut, changed or swapped: loading fails with an error, and nothing else is affected."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.errors import ErrorCode

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


class Own:
    """A daemon with two models: the demo model, and a copy of it whose large files are pinned."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        shutil.copytree(DEMO_MODEL, self.model)
        pins = "\n".join(f'"{name}" = "{digest(self.model / name)}"' for name in (UNET, VAE))
        own = MODEL.replace("[models.shapes]", "[models.own]").replace(str(DEMO_MODEL), str(self.model))
        self.daemon = Daemon(f"{MODEL}\n{own}\n[models.own.sha256]\n{pins}\n").wait_until_serving()
        with self.daemon.client() as client:
            self.expected = images(generate(client, model="own", format="raw"))[0].data

    def restore(self) -> None:
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.copytree(DEMO_MODEL, self.model)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    found = Own(tmp_path_factory.mktemp("models"))
    yield found
    assert found.daemon.stop() == 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 0xFF
    path.write_bytes(data)


def swap(model: Path) -> None:
    (model / UNET).rename(model / "kept")
    (model / VAE).rename(model / UNET)
    (model / "kept").rename(model / VAE)


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "the folder is missing": (shutil.rmtree, "no such model"),
    "a file is missing": (lambda model: (model / UNET).unlink(), f"{UNET}: No such file"),
    "a component is missing": (lambda model: shutil.rmtree(model / "text_encoder"), "text_encoder: this family needs"),
    "cut off": (lambda model: truncate(model / UNET, 100_000), "bytes of data, the header describes"),
    "cut off in the header": (lambda model: truncate(model / UNET, 20), "header of"),
    "empty": (lambda model: truncate(model / UNET, 0), "header of"),
    "one bit changed": (lambda model: flip(model / UNET), f"{UNET}: sha256 is"),
    "two files swapped": (swap, "sha256 is"),
    "another model's file": (lambda model: shutil.copy(model / VAE, model / UNET), f"{UNET}: sha256 is"),
    "a pickle instead": (lambda model: (model / UNET).rename(model / "unet" / "x.bin"), "x.bin is a pickle"),
    "a git-lfs pointer": (lambda model: (model / UNET).write_bytes(POINTER), f"{UNET}: a git-lfs pointer"),
    "a link to nothing": (lambda model: link(model / UNET, Path("x")), f"{UNET}: links to a file that does not exist"),
    "a link to elsewhere": (lambda model: link(model / UNET), "links to outside"),
}


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def link(path: Path, target: Path = DEMO_MODEL / UNET) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("name", HARM)
def test_damaged_files_are_refused_until_they_are_restored(own: Own, name: str) -> None:
    harm, reason = HARM[name]
    with own.daemon.client() as client:
        client.unload()
        harm(own.model)
        try:
            with pytest.raises(WeaveError) as refused:
                generate(client, model="own", format="raw")
        finally:
            own.restore()
        assert refused.value.code is ErrorCode.WORKER_FAILED and str(own.model) not in str(refused.value)
        wait_for(lambda: [line for line in own.daemon.events("job_failed") if reason in line["detail"]])
        assert images(generate(client, model="own", format="raw"))[0].data == own.expected
        assert images(generate(client, model="shapes", format="raw"))[0].data == own.expected


def test_files_that_vanish_under_a_loaded_model_do_it_no_harm(own: Own) -> None:
    with own.daemon.client() as client:
        client.load_model("own")
        shutil.rmtree(own.model)
        try:
            assert images(generate(client, model="own", format="raw"))[0].data == own.expected
        finally:
            own.restore()
