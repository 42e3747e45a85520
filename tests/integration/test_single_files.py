"""Models in single files, and in parts: the image equals what diffusers generates from the same model as a folder."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon, wait_for
from tests.support.fp8 import rounded, scaled, unscaled
from tests.support.generation import generate, images, pixels
from tests.support.reference import Reference, arguments, make_small_model, served_like_here, write_index
from tests.support.single_files import converted, make_single_file
from weave.client import WeaveError
from weave.models import families as known_families
from weave.models.assets import read_header
from weave.models.schedulers import name_of
from weave.protocol.client_messages import Preview
from weave.protocol.errors import ErrorCode

# Whose models come as one file, and in parts.
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "chroma", "z-image", "flux2-klein", "qwen-image")
IN_PARTS = ("flux", "z-image", "flux2-klein", "qwen-image", "krea2")
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


IN_FP8 = ("sd1", "flux", "z-image")
MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
# Models with EDM's noise schedule: the tensors that mark their files, and what their folders say of scheduler and VAE.
EDM: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "playground": (
        {"edm_mean": [[[[value]] for value in MEAN]], "edm_std": [[[[value]] for value in STD]]},
        {"_class_name": "EDMDPMSolverMultistepScheduler"},
        {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.5},
    ),
    # As ComfyUI writes it.
    "cosxl": (
        {"edm_vpred.sigma_max": 110.0, "edm_vpred.sigma_min": 0.004, "v_pred": [], "ztsnr": []},
        {
            "_class_name": "EDMEulerScheduler",
            "prediction_type": "v_prediction",
            "sigma_data": 1.0,
            "sigma_max": 110.0,
            "sigma_min": 0.004,
            "sigma_schedule": "exponential",
        },
        {},
    ),
}
OF_EDM = [name for model in EDM for name in (model, f"{model}-folder")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path, str]]:
    """By ID: the family, the folder that diffusers gets, and the daemon's config."""
    top = tmp_path_factory.mktemp("models")
    found = {}
    for family in FAMILIES:
        folder = make_folder(family, top / family)
        file = make_single_file(family, folder, top / f"{family}.safetensors")
        found[family] = (family, folder, table(family, family, file, folder))
    make_folder("krea2", top / "krea2")
    # As people of ComfyUI have them: the transformer without prefix, all else in files of their own.
    for family in IN_PARTS:
        folder, single = top / family, known_families.FAMILIES[family].single_file
        assert single is not None
        parts = {part: save_part(family, folder, part, top / f"{family}-{part}.safetensors") for part in single.parts}
        name = f"{family}-parts"
        found[name] = (family, folder, table(name, family, parts.pop("transformer"), folder, **parts))
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
    file = make_single_file("sdxl", top / "sdxl", top / "velocity.safetensors", {"v_pred": [], "ztsnr": []})
    found["velocity"] = ("sdxl", velocity, table("velocity", "sdxl", file, top / "sdxl"))
    for name, (marks, scheduler, vae_config) in EDM.items():
        folder = Path(shutil.copytree(top / "sdxl", top / name))
        configs = {"scheduler/scheduler_config.json": scheduler, "vae/config.json": vae_config}
        for config_file, changes in configs.items():
            before = {} if "_class_name" in changes else json.loads((folder / config_file).read_text())
            (folder / config_file).write_text(json.dumps(before | changes))
        write_index("sdxl", folder)
        file = make_single_file("sdxl", top / "sdxl", top / f"{name}.safetensors", marks)
        own = f'defaults.scheduler = "{name_of(scheduler["_class_name"])}"\n'
        found[name] = ("sdxl", folder, table(name, "sdxl", file, top / "sdxl") + own)
        found[f"{name}-folder"] = ("sdxl", folder, table(f"{name}-folder", "sdxl", folder, None) + own)
    for family in IN_FP8:
        tensors = load_file(top / f"{family}.safetensors")
        stored, plain = scaled(tensors), rounded(tensors)
        wide = {name: tensor.float() for name, tensor in plain.items()}
        files = {"scaled": stored, "unscaled": unscaled(stored), "fp8": plain, "wide": wide}
        for kind, content in files.items():
            name, file = f"{family}-{kind}", top / f"{family}-{kind}.safetensors"
            save_file(content, file)
            found[name] = (family, top / family, table(name, family, file, top / family))
        name, file = f"{family}-full", top / f"{family}-scaled.safetensors"
        found[name] = (family, top / family, table(name, family, file, top / family) + 'weights = "full"\n')
    return found


@pytest.fixture(scope="module")
def served(models: dict[str, tuple[str, Path, str]]) -> Iterator[Daemon]:
    with served_like_here("".join(config for *_, config in models.values()), "float32") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def served_as_float16(models: dict[str, tuple[str, Path, str]]) -> Iterator[Daemon]:
    with served_like_here("".join(config for *_, config in models.values()), "float16") as daemon:
        yield daemon


def drawn(daemon: Daemon, model: str) -> np.ndarray:
    with daemon.client() as client:
        wanted = {"width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg_scale": SCALE}
        return pixels(images(generate(client, "a red circle", model=model, **wanted))[0])


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(f"{family}-parts" for family in IN_PARTS), "other_vae", "vae_folder", "velocity", *OF_EDM]
)
def test_an_image_equals_that_of_the_folder(
    served: Daemon, models: dict[str, tuple[str, Path, str]], name: str
) -> None:
    check_image(served, "float32", models[name], name)


@pytest.mark.parametrize("name", ["sd1", "flux-parts", "playground"])
def test_in_float16_too(served_as_float16: Daemon, models: dict[str, tuple[str, Path, str]], name: str) -> None:
    check_image(served_as_float16, "float16", models[name], name)


def check_image(daemon: Daemon, dtype: str, model: tuple[str, Path, str], name: str) -> None:
    family, folder, _ = model
    plain = Reference(family, folder, dtype)
    generator = torch.Generator("cpu").manual_seed(SEED)
    default = known_families.FAMILIES[family].default_scheduler(
        plain.own.config | {"_class_name": type(plain.own).__name__}
    )
    scheduler = plain.scheduler(default)
    wanted = arguments(family, None, steps=STEPS, scale=SCALE)
    expected = plain.generate("a red circle", scheduler, generator, **wanted)
    assert expected.std() > 0
    assert np.array_equal(drawn(daemon, name), expected)


@pytest.mark.parametrize("name", ["playground", "playground-folder"])
def test_a_preview_is_denormalised_as_the_image_is(served: Daemon, name: str) -> None:
    with served.client() as client:
        wanted = {"width": 64, "height": 64, "steps": STEPS, "preview_every": STEPS}
        answers = generate(client, "a red circle", model=name, **wanted)
    (preview,) = [answer for answer in answers if isinstance(answer.event, Preview)]
    assert np.array_equal(pixels(preview), pixels(images(answers)[0]))


@pytest.mark.parametrize("family", IN_FP8)
def test_weights_in_fp8_are_multiplied_by_their_scales(served: Daemon, served_as_float16: Daemon, family: str) -> None:
    """They stay in fp8, or are converted once at load."""
    for daemon in (served, served_as_float16):
        expected = drawn(daemon, f"{family}-unscaled")
        assert np.array_equal(drawn(daemon, f"{family}-scaled"), expected)
        assert np.array_equal(drawn(daemon, f"{family}-full"), expected)
        assert np.array_equal(drawn(daemon, f"{family}-fp8"), drawn(daemon, f"{family}-wide"))


@pytest.mark.parametrize("family", [*FAMILIES[2:], "krea2"])
def test_no_file_is_taken_for_another_familys(models: dict[str, tuple[str, Path, str]], family: str) -> None:
    top = models["sd1"][1].parent
    header = read_header(top / ("krea2-transformer.safetensors" if family == "krea2" else f"{family}.safetensors"))
    known = known_families.FAMILIES.values()
    expected = [family, "qwen-image-edit", "qwen-image-edit-plus"] if family == "qwen-image" else [family]
    assert [it.name for it in known if it.single_file and it.single_file.is_of(header)] == expected


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
    flux, z_image = top / "flux-transformer.safetensors", top / "z-image.safetensors"
    files = {
        "of_sdxl": ("sd1", top / "sdxl.safetensors", layout),
        "no_unet": ("sd1", top / "flux-vae.safetensors", layout),
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
        "of_chroma": ("flux", top / "chroma.safetensors", None),
        "no_layout": ("z-image", z_image, None),
        "half": (
            "z-image",
            broken(folder / "half.safetensors", z_image, without("model.diffusion_model.layers.0.attention.qkv")),
            top / "z-image",
        ),
        "format": (
            "sd1",
            broken(
                folder / "format.safetensors", sd1, lambda t: t.update({first.replace("weight", "comfy_quant"): NVFP4})
            ),
            layout,
        ),
    } | {
        name: ("sdxl", make_single_file("sdxl", top / "sdxl", folder / f"{name}.safetensors", marks), top / "sdxl")
        for name, (marks, _) in BAD_MARKS.items()
    }
    (folder / "short.safetensors").write_bytes(sd1.read_bytes()[:-100])
    (folder / "model.ckpt").write_bytes(b"a pickle")
    daemon = Daemon("".join(table(name, *values) for name, values in files.items()))
    try:
        yield daemon.wait_until_serving()
    finally:
        daemon.stop()


# Tensors that would mark a model with EDM's noise schedule, and what is wrong with them.
BAD_MARKS: dict[str, tuple[dict[str, Any], str]] = {
    "edm_half": ({"edm_mean": MEAN}, "edm_mean: EDM's noise schedule is marked by edm_mean and edm_std, or edm_vpred"),
    "edm_both": ({"edm_mean": MEAN, "edm_vpred.sigma_max": 80.0}, "edm_mean, edm_vpred.sigma_max: EDM's noise"),
    "edm_other": ({"edm_eps": []}, "edm_eps: EDM's noise schedule is marked by"),
    "edm_short": ({"edm_mean": MEAN[:3], "edm_std": STD}, r"edm_mean: its shape is \[3\], expected one of 4 numbers"),
    "edm_long": ({"edm_vpred.sigma_max": [1.0, 2.0]}, r"edm_vpred.sigma_max: its shape is \[2\], expected one of 1"),
    "edm_nan": ({"edm_mean": [*MEAN[:3], float("nan")], "edm_std": STD}, "edm_mean has nan, expected a number from"),
    "edm_zero": ({"edm_mean": MEAN, "edm_std": [*STD[:3], 0.0]}, "edm_std has 0.0, expected a number from 1e-06"),
    "edm_range": ({"edm_vpred.sigma_max": 20000.0}, "edm_vpred.sigma_max has 20000.0, expected a number from 1e-06 to"),
    "edm_order": (
        {"edm_vpred.sigma_max": 2.0, "edm_vpred.sigma_min": 5.0}, "sigma_min is 5.0 and sigma_max 2.0, expected two"
    ),
}  # fmt: skip
NVFP4 = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)


def without(prefix: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "of_sdxl": "sdxl.safetensors: a model of family sdxl, not of sd1",
        "no_unet": "flux-vae.safetensors: has no UNet or transformer of a family",
        "no_vae": "vae: no_vae.safetensors does not have it; give its file as parts.vae",
        "missing": "unet: 1 missing tensors: 'conv_out.bias'",
        "unexpected": "unet: 1 unexpected tensors: 'input_blocks.0.0.weight.more'",
        "unknown": "vae: 1 unexpected tensors: 'x'",
        "short": "short.safetensors: .* the download is incomplete",
        "pickle": "model.ckpt: not a .safetensors or .gguf file; other formats can run code and are never read",
        "small": "tensors of another shape",
        "flux": "text_encoder: flux-transformer.safetensors does not have it; .* parts.text_encoder, such as clip_l",
        "of_chroma": "chroma.safetensors: a model of family chroma, not of flux",
        "no_layout": "z-image.safetensors: a single file of family z-image needs a layout: .* Tongyi-MAI/Z-Image-Turbo",
        "half": "transformer: 3 missing tensors: 'layers.0.attention.to_k.weight'",
        "format": "format is 'nvfp4', expected one of float8_e4m3fn, float8_e5m2",
        **{name: message for name, (_, message) in BAD_MARKS.items()},
    }.items(),
)
def test_a_file_is_refused_with_the_reason(refused: Daemon, name: str, message: str) -> None:
    before = len(refused.events("job_failed"))
    with refused.client() as client, pytest.raises(WeaveError) as error:
        generate(client, model=name)
    assert error.value.code is ErrorCode.WORKER_FAILED and ".safetensors" not in str(error.value)
    wait_for(lambda: [line for line in refused.events("job_failed")[before:] if re.search(message, line["detail"])])


def test_add_names_the_layout_that_a_file_needs(refused: Daemon, models: dict[str, tuple[str, Path, str]]) -> None:
    layout = models["z-image"][1]
    file = layout.with_suffix(".safetensors")
    lacking = weavectl(refused, "add", str(file), "--dry-run", "--id=new")
    assert lacking.returncode == 4 and "(weavectl add: --layout Z-Image-Turbo)" in lacking.stdout
    planned = weavectl(refused, "add", str(file), "--dry-run", "--id=new", "--layout", str(layout))
    assert planned.returncode == 0 and f'layout = "{layout}"\n' in planned.stdout
