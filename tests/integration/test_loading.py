"""Weights and configs through the real loader: good ones give the image of diffusers, bad ones are refused."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images, pixels
from tests.support.reference import FROM_TEXT, Reference, assembled, generated, write_index
from training.shapes.text import WIDTH
from weave.client import WeaveError
from weave.gpu_worker.loading import load_pipeline
from weave.models.assets import Source
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused
from weave.protocol.errors import ErrorCode

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Tensors = dict[str, torch.Tensor]
WEIGHTS = {
    part: f"{part}/{'model' if 'encoder' in part else 'diffusion_pytorch_model'}.safetensors"
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
}
PARTS = [
    (family, part) for family in FROM_TEXT if family != "sd2" for part in WEIGHTS if part in FAMILIES[family].components
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The same order of sums everywhere, and no waiting for a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family. sd1 and sd2 are smaller than the demo model, which is slow in float16."""
    folder = tmp_path_factory.mktemp("models")
    for family in FROM_TEXT:
        tiny_models.make(family, folder / family)
    small = tiny_models.small_unet(WIDTH)
    for family in ("sd1", "sd2"):
        shutil.rmtree(folder / family / "unet")
        small.save_pretrained(folder / family / "unet")
        shutil.copytree(folder / "sdxl" / "vae", folder / family / "vae", dirs_exist_ok=True)
    return folder


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder, dirs_exist_ok=True))


def change(file: Path, action: Callable[[Tensors], Tensors]) -> None:
    save_file({key: tensor.contiguous() for key, tensor in action(load_file(file)).items()}, file, {"format": "pt"})


def load(family: str, model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_pipeline(family, Source(model), CPU, dtype)


# Mixed files have each dtype; krea2 keeps some layers in float32. For files in float32 see test_same_as_diffusers.py.
COMBINATIONS = [
    *((name, "mixed") for name in FROM_TEXT),
    *((name, files) for name in ("sd1", "krea2") for files in DTYPES),
]


@pytest.mark.parametrize("family, files", COMBINATIONS)
def test_each_file_dtype_and_dtype_gives_the_image_of_diffusers(
    models: Path, tmp_path: Path, family: str, files: str
) -> None:
    def cast(tensors: Tensors) -> Tensors:
        choices = list(DTYPES.values()) if files == "mixed" else [DTYPES[files]]
        return {key: tensors[key].to(choices[place % len(choices)]) for place, key in enumerate(sorted(tensors))}

    model = copy_of(models / family, tmp_path)
    for file in model.rglob("*.safetensors"):
        change(file, cast)
    for dtype in DTYPES.values():
        pipeline = load(family, model, dtype)
        image = generated(pipeline, family)
        assert image.std() > 10
        assert np.array_equal(image, generated(assembled(family, model, dtype), family)), dtype
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                kept = getattr(part, "_keep_in_fp32_modules", None) or []
                others = {
                    tensor.dtype
                    for name, tensor in part.state_dict().items()
                    if tensor.is_floating_point() and not any(module in name.split(".") for module in kept)
                }
                assert others == {dtype}


def last(tensors: Tensors) -> str:
    """A tensor of more than one value, so that it can have another shape."""
    return next(key for key in sorted(tensors, reverse=True) if tensors[key].ndim)


HARM: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (lambda t: {key: t[key] for key in t if key != last(t)}, r"\d missing tensors: "),
    "half": (lambda t: {key: t[key] for place, key in enumerate(sorted(t)) if place % 2}, r"\d+ missing tensors: "),
    "misnamed": (lambda t: {f"{key}x" if key == last(t) else key: t[key] for key in t}, r"\d missing tensors: "),
    "one too many": (lambda t: t | {"extra.weight": torch.ones(2)}, "1 unexpected tensors: 'extra.weight'"),
    "another shape": (lambda t: t | {last(t): torch.cat([t[last(t)]] * 2)}, "1 tensors of another shape: "),
    "not numbers": (lambda t: t | {last(t): t[last(t)].to(torch.int8)}, "1 tensors not of floating-point numbers: "),
    "complex": (lambda t: t | {last(t): t[last(t)].to(torch.complex64)}, "1 tensors not of floating-point numbers: "),
    "none": (lambda t: {}, r"\d+ missing tensors: "),
}


@pytest.mark.parametrize("family, part", PARTS)
def test_missing_or_extra_weight_keys_are_refused_by_name(models: Path, tmp_path: Path, family: str, part: str) -> None:
    model = copy_of(models / family, tmp_path)
    file = model / WEIGHTS[part]
    sound = file.read_bytes()
    for action, told in HARM.values():
        file.write_bytes(sound)
        change(file, action)
        with pytest.raises(ModelFilesRefused, match=rf"^{part}: {told}"):
            load(family, model)
    file.unlink()
    with pytest.raises(ModelFilesRefused, match=rf"^{WEIGHTS[part]}: No such file"):
        load(family, model)


def test_of_many_missing_keys_only_some_are_named(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sd1", tmp_path)
    keys = sorted(load_file(model / WEIGHTS["unet"]))
    change(model / WEIGHTS["unet"], lambda tensors: {})
    with pytest.raises(ModelFilesRefused) as refused:
        load("sd1", model)
    first = ", ".join(repr(key) for key in keys[:5])
    assert str(refused.value) == f"unet: {len(keys)} missing tensors: {first}, ..."


def test_an_unusable_scheduler_config_is_refused_with_the_reason(models: Path, tmp_path: Path) -> None:
    for family in ("sd1", "sdxl"):
        file = copy_of(models / family, tmp_path / family) / "scheduler/scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"timestep_spacing": "sideways"}))
        with pytest.raises(ModelFilesRefused, match=r"^scheduler: .*sideways is not supported"):
            load(family, tmp_path / family)


def test_a_distilled_model_ignores_the_guidance_scale(models: Path, tmp_path: Path) -> None:
    family, found = "flux2-klein", []
    for distilled in (False, True):
        model = copy_of(models / family, tmp_path / str(distilled))
        write_index(family, model, is_distilled=distilled)
        found.append(generated(load(family, model), family))
        assert np.array_equal(found[-1], generated(Reference(family, model).pipeline, family))
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
@pytest.mark.parametrize("part, told", [("tokenizer", "takes 32 tokens, expected 16"), ("tokenizer_2", "takes 16 tok")])
def test_clip_encoders_of_different_prompt_lengths_are_refused(
    models: Path, tmp_path: Path, family: str, part: str, told: str
) -> None:
    file = copy_of(models / family, tmp_path) / part / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 16}))
    with pytest.raises(ModelFilesRefused, match=rf"^tokenizer_2: it {told}.* \(as tokenizer\)$"):
        load(family, tmp_path)


@pytest.mark.parametrize(
    "file, change, told",
    [
        ("text_encoder/config.json", {"eos_token_id": None}, "eos_token_id is None, expected a whole number"),
        ("text_encoder/config.json", {"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\], expected a whole number"),
        ("text_encoder/config.json", {"layer_norm_eps": None}, "layer_norm_eps is None, expected a number"),
        ("tokenizer/tokenizer_config.json", {"pad_token": None}, "it has no pad_token"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": [1]}, "model_max_length is"),
    ],
)
def test_an_encoder_that_fails_at_every_prompt_is_refused(
    models: Path, tmp_path: Path, file: str, change: dict[str, Any], told: str
) -> None:
    changed = copy_of(models / "sdxl", tmp_path) / file
    changed.write_text(json.dumps(json.loads(changed.read_text()) | change))
    with pytest.raises(ModelFilesRefused, match=rf"^{file.partition('/')[0]}.*: {told}"):
        load("sdxl", tmp_path)


def rename(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def old_attention(tensors: Tensors) -> Tensors:
    """As AutoencoderKL named it until 2023."""
    for old, new in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = rename(f"attentions.0.{old}.", f"attentions.0.{new}.")(tensors)
    return tensors


def named_now(tensors: Tensors) -> Tensors:
    """The encoder of Qwen-Image, which transformers still saves under its older names."""
    inner = rename("model.", "model.language_model.")(tensors)
    return {f"model.{key}" if key.startswith("visual.") else key: tensor for key, tensor in inner.items()}


AS_PUBLISHED: dict[str, tuple[str, str, Callable[[Tensors], Tensors]]] = {
    "CLIP's buffer": (
        "sd1", "text_encoder", lambda t: t | {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    ),
    "the same, with projection": (
        "sd3", "text_encoder", lambda t: t | {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    ),
    "an unused projection": ("sdxl", "text_encoder", lambda t: t | {"text_projection.weight": torch.ones(32, 32)}),
    "CLIP's scale": ("sd3", "text_encoder_2", lambda t: t | {"logit_scale": torch.tensor(4.6)}),
    "CLIP as it was named": ("flux", "text_encoder", lambda t: {f"text_model.{key}": t[key] for key in t}),
    "T5's table under both names": (
        "flux", "text_encoder_2", lambda t: t | {"encoder.embed_tokens.weight": t["shared.weight"].clone()}
    ),
    "T5's table under the other": ("sd3", "text_encoder_3", rename("shared.", "encoder.embed_tokens.")),
    "T5 with its decoder": (
        "flux", "text_encoder_2", lambda t: t | {"lm_head.weight": torch.ones(64, 32), "decoder.x": torch.ones(2)}
    ),
    "Qwen as a language model": (
        "z-image", "text_encoder",
        lambda t: {f"model.{key}": t[key] for key in t} | {"lm_head.weight": torch.ones(259, 32)},
    ),
    "Qwen-VL as it is named now": ("qwen-image", "text_encoder", named_now),
    "Qwen3-VL with its head": (
        "krea2", "text_encoder",
        lambda t: {f"model.{key}": t[key] for key in t} | {"lm_head.weight": torch.ones(259, 32)},
    ),
    "the attention of older VAEs": ("sd1", "vae", old_attention),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_known_extra_keys_of_published_files_change_nothing(models: Path, tmp_path: Path, name: str) -> None:
    family, part, action = AS_PUBLISHED[name]
    model = copy_of(models / family, tmp_path)
    before = load_file(model / WEIGHTS[part])
    change(model / WEIGHTS[part], action)
    assert load_file(model / WEIGHTS[part]).keys() != before.keys()
    assert np.array_equal(generated(load(family, model), family), generated(load(family, models / family), family))


def in_two_files(model: Path, part: str, second: str = "b.safetensors") -> None:
    """Moves every second tensor of a component to another file, with an index."""
    file = model / WEIGHTS[part]
    tensors = load_file(file)
    file.unlink()
    of = {key: ("a.safetensors", second)[place % 2] for place, key in enumerate(sorted(tensors))}
    for name in set(of.values()):
        save_file({key: tensors[key] for key in of if of[key] == name}, file.parent / name, {"format": "pt"})
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_sharded_weights_load_from_their_own_folder_only(models: Path, tmp_path: Path, part: str) -> None:
    model = copy_of(models / "flux", tmp_path / "model")
    in_two_files(model, part)
    assert np.array_equal(generated(load("flux", model), "flux"), generated(load("flux", models / "flux"), "flux"))
    elsewhere = copy_of(models / "flux", tmp_path / "elsewhere")
    in_two_files(elsewhere, part, "../b.safetensors")
    with pytest.raises(ModelFilesRefused, match=r"index.json: weight_map must give a .safetensors file of this folder"):
        load("flux", elsewhere)


def test_changing_a_file_does_not_change_the_loaded_model(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sdxl", tmp_path)
    pipeline = load("sdxl", model)
    for file in model.rglob("*.safetensors"):
        with open(file, "r+b") as data:
            data.truncate(100)
    assert np.array_equal(generated(pipeline, "sdxl"), generated(load("sdxl", models / "sdxl"), "sdxl"))


def inpainting(model: Path) -> None:
    """Makes the UNet that of an inpainting model, with five more input channels."""
    config = json.loads((model / "unet/config.json").read_text())
    (model / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))

    def widen(tensors: Tensors) -> Tensors:
        weight = tensors["conv_in.weight"]
        return tensors | {"conv_in.weight": torch.cat([weight, weight.new_zeros(weight.shape[0], 5, 3, 3)], 1)}

    change(model / WEIGHTS["unet"], widen)


@pytest.fixture(scope="module")
def daemon(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("harmed")
    inpainting(copy_of(models / "sd1", folder / "inpainting"))
    change(copy_of(models / "sdxl", folder / "noise") / WEIGHTS["text_encoder_2"], HARM["half"][0])
    quantized = copy_of(models / "sd3", folder / "quantized") / "text_encoder_3/config.json"
    quantized.write_text(json.dumps(json.loads(quantized.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    mixed = copy_of(models / "sd3", folder / "mixed")
    change(mixed / WEIGHTS["transformer"], lambda t: {k: v if "pos" in k else v.half() for k, v in t.items()})
    paths = {
        "inpainting": (folder / "inpainting", "sd1"),
        "noise": (folder / "noise", "sdxl"),
        "quantized": (folder / "quantized", "sd3"),
        "xl-as-1": (models / "sdxl", "sd1"),
        "mixed": (mixed, "sd3"),
        **{family: (models / family, family) for family in ("sd1", "sdxl", "flux")},
    }
    config = "".join(
        f'[models.{name}]\npath = "{path}"\nfamily = "{family}"\n' for name, (path, family) in paths.items()
    )
    started = Daemon(f'[device]\ndevice = "cpu"\nthreads = 1\ndtype = "bfloat16"\n{config}').wait_until_serving()
    yield started
    assert started.stop() == 0


@pytest.mark.parametrize(
    "name, told",
    [
        ("inpainting", "unet/config.json: in_channels is 9, expected 4 (the VAE's latent_channels)"),
        ("noise", "text_encoder_2: 1"),
        ("quantized", "text_encoder_3/config.json: 'quantization_config' is not a known key"),
        ("xl-as-1", "unet/config.json: cross_attention_dim is 64, expected 32 (the text encoder's hidden_size)"),
    ],
)
def test_the_daemon_refuses_to_load_an_unusable_model(daemon: Daemon, name: str, told: str) -> None:
    with daemon.client() as client, pytest.raises(WeaveError) as refused:
        client.load_model(name)
    assert refused.value.code is ErrorCode.WORKER_FAILED
    wait_for(lambda: [line for line in daemon.events("job_failed") if line["detail"].startswith(told)])


@pytest.mark.parametrize(
    "name, family, scheduler",
    [
        ("mixed", "sd3", "flow_euler"),
        ("sd1", "sd1", "ddim"),
        ("sdxl", "sdxl", "euler"),
        ("flux", "flux", "flow_euler"),
    ],
)
def test_each_family_generates_in_the_default_dtype_of_a_gpu(
    daemon: Daemon, name: str, family: str, scheduler: str
) -> None:
    wanted = {"width": 64, "height": 64, "steps": 2, "seed": 1, "cfg_scale": 5.0, "scheduler": scheduler}
    with daemon.client() as client:
        image = pixels(images(generate(client, "a red circle", model=name, **wanted))[0])
        assert client.status().dtype == "bfloat16"
    path = tomllib.loads(daemon.config.read_text())["models"][name]["path"]
    assert np.array_equal(image, generated(assembled(family, Path(path), torch.bfloat16), family))
