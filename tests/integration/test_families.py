"""Each family in the real, locked-down worker of the real daemon, with a tiny model loaded from disk."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.reference import FROM_TEXT, fitting
from weave.client import WeaveError
from weave.protocol.client_messages import Preview
from weave.protocol.errors import ErrorCode

NAMES = tuple(name for name in FROM_TEXT if name != "sd1")  # its model here is the same as sd2's


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        tiny_models.make(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def families(models: Path) -> Iterator[Daemon]:
    daemon = Daemon("".join(f'[models.{name}]\npath = "{models / name}"\nfamily = "{name}"\n' for name in NAMES))
    yield daemon.wait_until_serving()
    daemon.stop()


@pytest.mark.parametrize("name", NAMES)
def test_a_family_generates_previews_and_repeatable_images(families: Daemon, name: str) -> None:
    wanted = {"model": name, "width": 64, "height": 64, "steps": 3, "preview_every": 2, "cfg_scale": 4.0}
    with families.client() as client:
        first, again = generate(client, **wanted), generate(client, **wanted)
        guided = generate(client, **wanted, negative_prompt="blurred")
    assert pixels(images(first)[0]).shape == (64, 64, 3)
    assert images(first)[0].data == images(again)[0].data
    assert (pixels(images(guided)[0]) != pixels(images(first)[0])).any()
    assert any(isinstance(answer.event, Preview) for answer in first)


@pytest.mark.parametrize("name, scheduler", [(name, s) for name in NAMES for s in fitting(name)])
def test_each_scheduler_of_a_family_runs(families: Daemon, name: str, scheduler: str) -> None:
    with families.client() as client:
        assert images(generate(client, model=name, width=64, height=64, steps=3, scheduler=scheduler))


def test_a_wide_request_gives_a_wide_image(families: Daemon) -> None:
    with families.client() as client:
        assert pixels(images(generate(client, model="sdxl", width=128, height=64))[0]).shape == (64, 128, 3)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def link(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
# By name: the damage to a good model, and the reason in the log.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (
        lambda model: (model / WEIGHTS).rename(model / "unet" / "diffusion_pytorch_model.bin"),
        "diffusion_pytorch_model.bin is a pickle",
    ),
    "pickle-as-safetensors": (lambda model: (model / WEIGHTS).write_bytes(b"\x80\x04" + 99 * b"."), "header of"),
    "link-outside": (lambda model: link(model / "vae" / "config.json", "/etc/passwd"), "vae/config.json: links to"),
    "no-vae": (lambda model: shutil.rmtree(model / "vae"), "vae"),
    "unknown-scheduler": (
        lambda model: (model / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "os.system"}'),
        "scheduler",
    ),
    "truncated": (lambda model: truncate(model / WEIGHTS), "bytes of data"),
    "broken-config": (
        lambda model: (model / "unet" / "config.json").write_text("{"),
        "unet/config.json: not valid JSON",
    ),
}


@pytest.fixture(scope="module")
def damaged_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    for name, (damage, _) in DAMAGE.items():
        damage(tiny_models.make("sd1", folder / name))
    return folder


@pytest.fixture(scope="module")
def damaged(damaged_models: Path) -> Iterator[Daemon]:
    tables = (f'[models.{name}]\npath = "{damaged_models / name}"\nfamily = "sd1"\n' for name in DAMAGE)
    daemon = Daemon("".join(tables))
    yield daemon.wait_until_serving()
    daemon.stop()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_models_error_names_no_path_but_the_log_does(
    damaged: Daemon, damaged_models: Path, name: str
) -> None:
    before = len(damaged.events("job_failed"))
    with damaged.client() as client:
        with pytest.raises(WeaveError) as refused:
            client.load_model(name)
        assert refused.value.code is ErrorCode.WORKER_FAILED
        assert str(damaged_models) not in str(refused.value)
        reason = DAMAGE[name][1]
        assert wait_for(lambda: [event for event in damaged.events("job_failed")[before:] if reason in event["detail"]])
        wait_for(lambda: client.status().worker == "none")
