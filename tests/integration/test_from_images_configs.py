"""Images to start from, in models whose configs differ: EDM's noise schedule, PNDM's warm-up, float16."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.daemon import Daemon
from tests.support.from_images import FromImages, mask, noise
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from weave.gpu_worker.classes import pipeline_for
from weave.gpu_worker.pipelines import adapter_of
from weave.models.families import FAMILIES
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING

PROMPT, SEED, SCALE, STEPS, STRENGTH, SIDE = "a red circle", 3, 4.0, 5, 0.6, 64
STATISTICS = {"latents_mean": [-1.6, 1.1, 1.3, -0.7], "latents_std": [8.4, 5.9, 5.0, 3.5]}  # as in Playground 2.5
# Each family, and what its files say of scheduler and VAE.
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "edm": ("sdxl", {"_class_name": "EDMEulerScheduler"}, {}),
    "normalised": ("sdxl", {"_class_name": "EDMDPMSolverMultistepScheduler"}, STATISTICS),
    "kutta": ("sd1", {"_class_name": "PNDMScheduler", "skip_prk_steps": False, "steps_offset": 1}, {}),
}
# In float16, each with its own scheduler.
HALF = {"sd1": "pndm", "sdxl": "euler", "flux": "flow_euler", "z-image": "flow_euler"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (family, scheduler, vae) in (CONFIGS | {name: (name, {}, {}) for name in HALF}).items():
        made = make_small_model(family, folder / name)
        if scheduler:
            (made / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
        config = made / "vae/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | vae))
        write_index(family, made)
    return folder


def tables(models: Path, names: dict[str, str]) -> str:
    return "".join(f'[models.{name}]\npath = "{models / name}"\nfamily = "{names[name]}"\n' for name in names)


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Daemon]:
    with served_like_here(tables(models, {name: it[0] for name, it in CONFIGS.items()}), "float32") as daemon:
        yield daemon


def made_of(daemon: Daemon, name: str, **more: Any) -> np.ndarray[Any, Any]:
    wanted = {"width": SIDE, "height": SIDE, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE, "strength": STRENGTH}
    with daemon.client() as client:
        return pixels(
            images(generate(client, PROMPT, **{"model": name, "image": noise(SIDE, SIDE), **wanted, **more}))[0]
        )


def plainly(family: str) -> dict[str, Any]:
    given = arguments(family, None, steps=STEPS, scale=SCALE, side=SIDE)
    return {"prompt": PROMPT, "strength": STRENGTH, "image": noise(SIDE, SIDE), **given}


@pytest.mark.parametrize("scheduler", ["edm_euler", "edm_dpmpp_2m"])
@pytest.mark.parametrize("name", ["edm", "normalised"])
def test_edm_equals_diffusers(served: Daemon, models: Path, name: str, scheduler: str) -> None:
    plain, where = Reference("sdxl", models / name), mask(SIDE, SIDE)
    theirs = FromImages(plain, "sdxl", IMAGE_TO_IMAGE).generate(plain.scheduler(scheduler), SEED, **plainly("sdxl"))
    assert np.array_equal(made_of(served, name, scheduler=scheduler), np.asarray(theirs))
    if name == "edm":  # its class for inpainting ignores the statistics
        it = FromImages(plain, "sdxl", INPAINTING)
        theirs = it.generate(plain.scheduler(scheduler), SEED, mask_image=where, **plainly("sdxl"))
        expected = np.where(np.asarray(where)[..., None] > 0, np.asarray(theirs), np.asarray(noise(SIDE, SIDE)))
        assert np.array_equal(made_of(served, name, scheduler=scheduler, mask=where), expected)


@pytest.mark.parametrize(("name", "scheduler"), [("edm", "edm_euler"), ("normalised", "edm_euler"), ("kutta", "ddim")])
def test_all_white_is_image_to_image(served: Daemon, name: str, scheduler: str) -> None:
    """If everything is repainted, the two tasks use the same noise."""
    whole = made_of(served, name, mask=Image.new("L", (SIDE, SIDE), 255), scheduler=scheduler)
    assert np.abs(whole.astype(int) - made_of(served, name, scheduler=scheduler)).max() <= 1


def test_pndm_starts_from_an_image_without_warm_up(served: Daemon, models: Path) -> None:
    """diffusers' warm-up assumes that it starts with the first timestep."""
    plain = Reference("sd1", models / "kutta")
    it = FromImages(plain, "sd1", IMAGE_TO_IMAGE)
    expected = it.generate(plain.scheduler("pndm", skip_prk_steps=True), SEED, **plainly("sd1"))
    assert np.array_equal(made_of(served, "kutta", scheduler="pndm"), np.asarray(expected))
    assert not np.array_equal(np.asarray(it.generate(plain.own, SEED, **plainly("sd1"))), np.asarray(expected))


def test_an_error_while_encoding_leaves_the_dtype(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sdxl's pipelines encode in float32. A CPU does not run out of memory, so the error is simulated."""

    def encode(image: torch.Tensor) -> None:
        assert image.dtype == torch.float32
        raise torch.OutOfMemoryError

    own = Reference("sdxl", models / "sdxl", "float16").pipeline
    made = pipeline_for(own, FAMILIES["sdxl"], IMAGE_TO_IMAGE)
    monkeypatch.setattr(own.vae, "encode", encode)
    with pytest.raises(torch.OutOfMemoryError):
        adapter_of("sdxl").call(made, {"prompt": PROMPT}, image=noise(SIDE, SIDE))
    assert own.vae.dtype == torch.float16


def test_half_precision_equals_diffusers(models: Path) -> None:
    """sdxl's VAE encodes and decodes in float32, and is in float16 again afterwards."""
    with served_like_here(tables(models, {name: name for name in HALF}), "float16") as daemon:
        for name, scheduler in HALF.items():
            plain, where = Reference(name, models / name, "float16"), mask(SIDE, SIDE)
            alone = made_of(daemon, name, image=None)
            theirs = FromImages(plain, name, IMAGE_TO_IMAGE).generate(plain.own, SEED, **plainly(name))
            assert np.array_equal(made_of(daemon, name, scheduler=scheduler), np.asarray(theirs)), name
            it = FromImages(plain, name, INPAINTING)
            theirs = it.generate(plain.own, SEED, mask_image=where, **plainly(name))
            white = np.asarray(where) > 0
            assert np.array_equal(
                made_of(daemon, name, scheduler=scheduler, mask=where)[white], np.asarray(theirs)[white]
            ), name
            assert np.array_equal(made_of(daemon, name, image=None), alone), name
