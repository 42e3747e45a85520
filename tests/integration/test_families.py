"""Each family in the real, locked-down worker of the real daemon, with a tiny model loaded from disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.daemon import Daemon, wait_for
from tests.support.pictures import draw, images, pixels
from weave.client import WeaveError
from weave.models.families import FAMILIES
from weave.protocol.client_messages import Preview
from weave.protocol.errors import ErrorCode

NAMES = tuple(name for name in FAMILIES if name != "sd1")  # whose model here is sd2's


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
def test_a_family_draws_previews_and_repeats_itself(families: Daemon, name: str) -> None:
    wanted = {"model": name, "width": 64, "height": 64, "steps": 3, "preview_every": 2}
    with families.client() as client:
        first, again = draw(client, **wanted), draw(client, **wanted)
        guided = draw(client, **wanted, negative_prompt="blurred")
    assert pixels(images(first)[0]).shape == (64, 64, 3)
    assert images(first)[0].data == images(again)[0].data
    assert images(guided)[0].data != images(first)[0].data
    assert any(isinstance(answer.event, Preview) for answer in first)


@pytest.mark.parametrize("name, scheduler", [(name, s) for name in NAMES for s in FAMILIES[name].schedulers])
def test_each_scheduler_of_a_family_runs(families: Daemon, name: str, scheduler: str) -> None:
    with families.client() as client:
        assert images(draw(client, model=name, width=64, height=64, steps=3, scheduler=scheduler))


def test_wide_is_wide(families: Daemon) -> None:
    with families.client() as client:
        assert pixels(images(draw(client, model="sdxl", width=128, height=64))[0]).shape == (64, 128, 3)


@pytest.mark.parametrize(
    "harm, told",
    [
        (
            lambda model: (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04"),
            "diffusion_pytorch_model.bin",
        ),
        (lambda model: (model / "unet" / "code.py").write_text("import os"), "code.py"),
        (lambda model: (model / "vae" / "link.json").symlink_to("/etc/passwd"), "link.json"),
        (lambda model: shutil.rmtree(model / "vae"), "vae"),
        (
            lambda model: (model / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "os.system"}'),
            "scheduler",
        ),
        (lambda model: truncate(model / "unet" / "diffusion_pytorch_model.safetensors"), "bytes of data"),
        (lambda model: (model / "unet" / "config.json").write_text("{"), "unet/config.json: not valid JSON"),
    ],
    ids=["a pickle", "code", "a link outside", "no vae", "a foreign scheduler", "truncated", "broken config"],
)
def test_a_harmed_model_is_refused_the_reason_logged_and_no_path_told(tmp_path: Path, harm: object, told: str) -> None:
    assert callable(harm)
    model = tiny_models.make("sd1", tmp_path / "model")
    harm(model)
    daemon = Daemon(f'[models.m]\npath = "{model}"\nfamily = "sd1"\n').wait_until_serving()
    try:
        with daemon.client() as client:
            with pytest.raises(WeaveError) as refused:
                client.load_model("m")
            assert refused.value.code is ErrorCode.WORKER_FAILED
            assert str(tmp_path) not in str(refused.value)
            assert wait_for(lambda: [e for e in daemon.events("job_failed") if told in e["detail"]])
            wait_for(lambda: client.status().worker == "none")
    finally:
        daemon.stop()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
