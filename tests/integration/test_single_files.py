"""Models in single files, and in parts: the image equals what diffusers generates from the same model as a folder."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from tests.support.single_files import converted, make_single_file
from weave.client import WeaveError
from weave.models import families as known_families
from weave.protocol.errors import ErrorCode

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
STEPS, SEED, SCALE = 2, 3, 4.0
UNET = "unet/diffusion_pytorch_model.safetensors"
VELOCITY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def table(name: str, family: str, path: Path, layout: Path | None, **parts: Path) -> str:
    lines = [f"[models.{name}]", f'family = "{family}"', f'path = "{path}"']
    lines += [f'layout = "{layout}"'] if layout else []
    lines += [f'parts.{part} = "{file}"' for part, file in parts.items()]
    return "\n".join([*lines, ""])


def changed(model: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """`model`, with other tensors in the file `name`."""
    tensors = load_file(model / name)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, model / name)
    return model


def make_folder(family: str, folder: Path) -> Path:
    model = make_small_model(family, folder)
    if family == "sd3":  # the first encoder of SD3 projects nothing

        def identity(tensors: dict[str, torch.Tensor]) -> None:
            tensors["text_projection.weight"] = torch.eye(len(tensors["text_projection.weight"]))

        changed(model, "text_encoder/model.safetensors", identity)
    write_index(family, model)
    return model


def save_part(family: str, model: Path, part: str, file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in converted(family, model, part).items()}, file)
    return file


def predict_velocity(model: Path) -> Path:
    file = model / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | VELOCITY))
    return model


def scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices in 8 bits, each with a scale, as ComfyUI stores them."""
    stored = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            stored[name] = tensor
    return stored


def unscaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.float() * tensors[name.removesuffix("weight") + "scale_weight"]
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith("scale_weight") and name != "scaled_fp8"
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path, str]]:
    """By ID: the family, the folder that diffusers gets, and the daemon's config."""
    top = tmp_path_factory.mktemp("models")
    found = {}
    for family in FAMILIES:
        folder = make_folder(family, top / family)
        file = make_single_file(family, folder, top / f"{family}.safetensors")
        found[family] = (family, folder, table(family, family, file, folder))
    # As people of ComfyUI have FLUX: the transformer without prefix, all else in files of their own.
    flux = top / "flux"
    parts = {
        part: save_part("flux", flux, part, top / f"{part}.safetensors")
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2")
    }
    found["parts"] = ("flux", flux, table("parts", "flux", parts.pop("transformer"), flux, **parts))
    other = make_folder("sd1", top / "other")
    changed(other, "vae/diffusion_pytorch_model.safetensors", lambda tensors: [t.mul_(1.5) for t in tensors.values()])
    vae = save_part("sd1", other, "vae", top / "other_vae.safetensors")
    both = Path(shutil.copytree(top / "sd1", top / "both"))
    shutil.copytree(other / "vae", both / "vae", dirs_exist_ok=True)
    found["other_vae"] = ("sd1", both, table("other_vae", "sd1", top / "sd1", None, vae=vae))
    found["vae_folder"] = (
        "sd1",
        both,
        table("vae_folder", "sd1", top / "sd1.safetensors", top / "sd1", vae=other / "vae"),
    )
    velocity = predict_velocity(Path(shutil.copytree(top / "sdxl", top / "velocity")))
    file = make_single_file("sdxl", top / "sdxl", top / "velocity.safetensors", ("v_pred", "ztsnr"))
    found["velocity"] = ("sdxl", velocity, table("velocity", "sdxl", file, top / "sdxl"))
    stored = scaled(load_file(top / "sd1.safetensors"))
    save_file(stored, top / "scaled.safetensors")
    save_file(unscaled(stored), top / "unscaled.safetensors")
    found["scaled"] = ("sd1", top / "unscaled", table("scaled", "sd1", top / "scaled.safetensors", top / "sd1"))
    found["unscaled"] = ("sd1", top / "unscaled", table("unscaled", "sd1", top / "unscaled.safetensors", top / "sd1"))
    return found


@pytest.fixture(scope="module", params=["float32", "float16"])
def served(models: dict[str, tuple[str, Path, str]], request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, str]]:
    tables = "".join(config for *_, config in models.values())
    with served_like_here(tables, request.param) as daemon:
        yield daemon, request.param


def drawn(daemon: Daemon, model: str) -> np.ndarray:
    with daemon.client() as client:
        wanted = {"width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
        return pixels(images(generate(client, "a red circle", model=model, **wanted))[0])


@pytest.mark.parametrize("name", [*FAMILIES, "parts", "other_vae", "vae_folder", "velocity"])
def test_an_image_equals_that_of_the_folder(
    served: tuple[Daemon, str], models: dict[str, tuple[str, Path, str]], name: str
) -> None:
    daemon, dtype = served
    family, folder, _ = models[name]
    plain = Reference(family, folder, dtype)
    generator = torch.Generator("cpu").manual_seed(SEED)
    scheduler = plain.scheduler(known_families.FAMILIES[family].defaults.scheduler)
    wanted = arguments(family, None, steps=STEPS, scale=SCALE)
    expected = plain.generate("a red circle", scheduler, generator, **wanted)
    assert expected.std() > 0
    assert np.array_equal(drawn(daemon, name), expected)


def test_weights_with_scales_are_multiplied_by_them(served: tuple[Daemon, str]) -> None:
    daemon, _ = served
    assert np.array_equal(drawn(daemon, "scaled"), drawn(daemon, "unscaled"))


def test_a_single_file_that_was_added_is_served(tmp_path: Path) -> None:
    """With a part of its own, and the configs of a small model."""
    layout = make_folder("sd1", tmp_path / "layout")
    file = make_single_file("sd1", layout, tmp_path / "My File.safetensors")
    vae = save_part("sd1", layout, "vae", tmp_path / "vae.safetensors")
    broken(file, file, without("first_stage_model."))
    daemon = Daemon()
    try:
        daemon.wait_until_serving()
        lacking = weavectl(daemon, "add", str(file), "--layout", str(layout), "--dry-run")
        assert lacking.returncode == 4 and "vae: My File.safetensors does not have it" in lacking.stdout
        ended = weavectl(daemon, "add", str(file), "--layout", str(layout), f"--part=vae={vae}")
        assert ended.returncode == 0, ended.stdout
        drop_in = (daemon.folder / "config/weave/conf.d/my-file.toml").read_text()
        wanted = [f'path = "{file}"', f'layout = "{layout}"', f'parts.vae = "{vae}"', 'family = "sd1"']
        assert set(wanted) < set(drop_in.splitlines())
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: daemon.events("reloaded") != [])
        assert drawn(daemon, "my-file").std() > 0
        doctor = weavectl(daemon, "doctor")
        assert f"{file}" in doctor.stdout and "fail" not in doctor.stdout
    finally:
        daemon.stop()


def broken(file: Path, model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """`model`, a single file, with other tensors."""
    tensors = load_file(model)
    change(tensors)
    save_file(tensors, file)
    return file


@pytest.fixture(scope="module")
def refused(models: dict[str, tuple[str, Path, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    top, folder = models["sd1"][1].parent, tmp_path_factory.mktemp("refused")
    sd1, layout = top / "sd1.safetensors", top / "sd1"
    first = "model.diffusion_model.input_blocks.0.0.weight"
    flux = top / "transformer.safetensors"
    files = {
        "of_sdxl": ("sd1", top / "sdxl.safetensors", layout),
        "no_unet": ("sd1", top / "vae.safetensors", layout),
        "no_vae": ("sd1", broken(folder / "no_vae.safetensors", sd1, without("first_stage_model.")), layout),
        "missing": (
            "sd1",
            broken(folder / "missing.safetensors", sd1, lambda t: t.pop("model.diffusion_model.out.2.bias")),
            layout,
        ),
        "unexpected": (
            "sd1",
            broken(folder / "unexpected.safetensors", sd1, lambda t: t.update({f"{first}.more": torch.zeros(1)})),
            layout,
        ),
        "unknown": (
            "sd1",
            broken(folder / "x.safetensors", sd1, lambda t: t.update({"first_stage_model.x": t[first] + 1})),
            layout,
        ),
        "short": ("sd1", folder / "short.safetensors", layout),
        "pickle": ("sd1", folder / "model.ckpt", layout),
        "small": ("sd1", sd1, None),
        "flux": ("flux", flux, None),
        "format": (
            "sd1",
            broken(
                folder / "format.safetensors", sd1, lambda t: t.update({first.replace("weight", "comfy_quant"): NVFP4})
            ),
            layout,
        ),
        "edm": (
            "sdxl",
            make_single_file("sdxl", top / "sdxl", folder / "edm.safetensors", ("edm_mean",)),
            top / "sdxl",
        ),
    }
    (folder / "short.safetensors").write_bytes(sd1.read_bytes()[:-100])
    (folder / "model.ckpt").write_bytes(b"a pickle")
    daemon = Daemon("".join(table(name, *values) for name, values in files.items()))
    try:
        yield daemon.wait_until_serving()
    finally:
        daemon.stop()


NVFP4 = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)


def without(prefix: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "of_sdxl": "sdxl.safetensors: a model of family sdxl, not of sd1",
        "no_unet": "vae.safetensors: has no UNet or transformer of a family",
        "no_vae": "vae: no_vae.safetensors does not have it; give its file as parts.vae",
        "missing": "unet: 1 missing tensors: 'conv_out.bias'",
        "unexpected": "unet: 1 unexpected tensors: 'input_blocks.0.0.weight.more'",
        "unknown": "vae: 1 unexpected tensors: 'x'",
        "short": "short.safetensors: .* the download is incomplete",
        "pickle": "model.ckpt: not a .safetensors file; other formats can run code and are never read",
        "small": "tensors of another shape",
        "flux": "text_encoder: transformer.safetensors does not have it; .* parts.text_encoder, such as clip_l",
        "format": "format is 'nvfp4', expected one of float8_e4m3fn, float8_e5m2",
        "edm": "edm_mean: marks a model for the noise schedule of EDM, which is not supported",
    }.items(),
)
def test_a_file_is_refused_with_the_reason(refused: Daemon, name: str, message: str) -> None:
    before = len(refused.events("job_failed"))
    with refused.client() as client, pytest.raises(WeaveError) as error:
        generate(client, model=name)
    assert error.value.code is ErrorCode.WORKER_FAILED and ".safetensors" not in str(error.value)
    wait_for(lambda: [line for line in refused.events("job_failed")[before:] if re.search(message, line["detail"])])
