"""Weights and configs through the real loader: what is sound gives plain diffusers' picture, what is not is refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from tests.support.builds import daemon_of
from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.pictures import draw, images, pixels
from tests.support.plain import drawn, plain_pipeline
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.gpu_worker.families import FAMILIES
from weave.gpu_worker.loading import load_pipeline
from weave.model_files import ModelFilesRefused
from weave.protocol.client_messages import Image
from weave.protocol.errors import ErrorCode

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Tensors = dict[str, torch.Tensor]
WEIGHTS = {
    part: f"{part}/{'model' if 'encoder' in part else 'diffusion_pytorch_model'}.safetensors"
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
}
PARTS = [
    (family, part) for family in FAMILIES if family != "sd2" for part in WEIGHTS if part in FAMILIES[family].components
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family. sd1 and sd2 are smaller than the demo model, which is slow in float16."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_models.make(family, folder / family)
    small = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=96,
        norm_num_groups=8,
    )
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
    return load_pipeline(family, model, CPU, dtype)


# sd2 has sd1's classes.
COMBINATIONS = [(name, files) for name in FAMILIES for files in (*DTYPES, "mixed") if name != "sd2" or files == "mixed"]


@pytest.mark.parametrize("family, files", COMBINATIONS)
def test_from_files_of_each_dtype_each_dtype_gives_the_picture_of_plain_diffusers(
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
        picture = drawn(pipeline, family)
        assert picture.std() > 10
        assert np.array_equal(picture, drawn(plain_pipeline(family, model, dtype), family)), dtype
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                kept = getattr(part, "_keep_in_fp32_modules", None) or []
                others = {
                    tensor.dtype
                    for name, tensor in [*part.named_parameters(), *part.named_buffers()]
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
def test_weights_that_lack_a_key_or_have_one_too_many_are_refused_by_component_and_key(
    models: Path, tmp_path: Path, family: str, part: str
) -> None:
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


def test_the_keys_that_are_missing_are_named_but_not_all(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sd1", tmp_path)
    keys = sorted(load_file(model / WEIGHTS["unet"]))
    change(model / WEIGHTS["unet"], lambda tensors: {})
    with pytest.raises(ModelFilesRefused) as refused:
        load("sd1", model)
    first = ", ".join(repr(key) for key in keys[:5])
    assert str(refused.value) == f"unet: {len(keys)} missing tensors: {first}, ..."


def rename(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def old_attention(tensors: Tensors) -> Tensors:
    """As AutoencoderKL named it until 2023."""
    for old, new in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = rename(f"attentions.0.{old}.", f"attentions.0.{new}.")(tensors)
    return tensors


AS_PUBLISHED: dict[str, tuple[str, str, Callable[[Tensors], Tensors]]] = {
    "CLIP's buffer": (
        "sd1", "text_encoder", lambda t: t | {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    ),
    "the same, with projection": (
        "sd3", "text_encoder", lambda t: t | {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    ),
    "a projection nobody uses": ("sdxl", "text_encoder", lambda t: t | {"text_projection.weight": torch.ones(32, 32)}),
    "CLIP as it was named": ("flux", "text_encoder", lambda t: {f"text_model.{key}": t[key] for key in t}),
    "T5's table under both names": (
        "flux", "text_encoder_2", lambda t: t | {"encoder.embed_tokens.weight": t["shared.weight"].clone()}
    ),
    "T5's table under the other": ("sd3", "text_encoder_3", rename("shared.", "encoder.embed_tokens.")),
    "T5 with its decoder": (
        "flux", "text_encoder_2", lambda t: t | {"lm_head.weight": torch.ones(64, 32), "decoder.x": torch.ones(2)}
    ),
    "the attention of older VAEs": ("sd1", "vae", old_attention),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_keys_of_published_files_load_and_change_nothing(models: Path, tmp_path: Path, name: str) -> None:
    family, part, action = AS_PUBLISHED[name]
    model = copy_of(models / family, tmp_path)
    before = load_file(model / WEIGHTS[part])
    change(model / WEIGHTS[part], action)
    assert load_file(model / WEIGHTS[part]).keys() != before.keys()
    assert np.array_equal(drawn(load(family, model), family), drawn(load(family, models / family), family))


def in_two_files(model: Path, part: str, second: str = "b.safetensors") -> None:
    """The second half of a component's tensors goes into a file of its own, as an index says."""
    file = model / WEIGHTS[part]
    tensors = load_file(file)
    file.unlink()
    of = {key: ("a.safetensors", second)[place % 2] for place, key in enumerate(sorted(tensors))}
    for name in set(of.values()):
        save_file({key: tensors[key] for key in of if of[key] == name}, file.parent / name, {"format": "pt"})
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_weights_in_several_files_load_from_their_folder_only(models: Path, tmp_path: Path, part: str) -> None:
    model = copy_of(models / "flux", tmp_path / "model")
    in_two_files(model, part)
    assert np.array_equal(drawn(load("flux", model), "flux"), drawn(load("flux", models / "flux"), "flux"))
    elsewhere = copy_of(models / "flux", tmp_path / "elsewhere")
    in_two_files(elsewhere, part, "../b.safetensors")
    with pytest.raises(ModelFilesRefused, match=r"index.json: weight_map must give a .safetensors file of this folder"):
        load("flux", elsewhere)


def test_a_file_that_is_changed_under_a_loaded_model_does_not_change_the_model(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sdxl", tmp_path)
    pipeline = load("sdxl", model)
    for file in model.rglob("*.safetensors"):
        with open(file, "r+b") as data:
            data.truncate(100)
    assert np.array_equal(drawn(pipeline, "sdxl"), drawn(load("sdxl", models / "sdxl"), "sdxl"))


OF_TRANSFORMERS = (
    "quantization_config", "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "configuration_files", "transformers_weights", "fusion_config", "kernel_config",
    "use_kernels", "distributed_config", "per_layer_config", "text_config", "trust_remote_code", "custom_pipelines",
    "compression_config", "base_model_tp_plan", "extra_files", "generation_config", "adapter_kwargs", "gguf_file",
    "name_or_path", "rope_parameters", "__class__",
)  # fmt: skip
OF_DIFFUSERS = (
    "quantization_config", "auto_map", "trust_remote_code", "attn_processor", "_fn_module", "use_flashpack",
    "parallel_config", "_keep_in_fp32_modules", "dtype", "config", "kwargs", "self",
)  # fmt: skip
OF_TOKENIZERS = (
    "auto_map", "vocab_file", "merges_file", "vocab", "merges", "tokenizer_object", "fast_tokenizer_files", "gguf_file",
    "from_slow", "__slow_tokenizer", "init_inputs", "chat_template", "trust_remote_code", "slow_tokenizer_class",
    "model_specific_special_tokens", "config", "evil_token",
)  # fmt: skip
ATTACKS = [
    *(("sd1", f"{part}/config.json", key) for part in ("unet", "vae") for key in OF_DIFFUSERS),
    *(("sd3", "transformer/config.json", key) for key in OF_DIFFUSERS),
    *(("flux", "transformer/config.json", key) for key in OF_DIFFUSERS),
    *(("flux", f"{part}/config.json", key) for part in ("text_encoder", "text_encoder_2") for key in OF_TRANSFORMERS),
    *(("sdxl", "text_encoder_2/config.json", key) for key in OF_TRANSFORMERS),
    *(("flux", f"{part}/tokenizer_config.json", key) for part in ("tokenizer", "tokenizer_2") for key in OF_TOKENIZERS),
    *(("sd1", "tokenizer/special_tokens_map.json", key) for key in OF_TOKENIZERS),
    *(("sd1", "scheduler/scheduler_config.json", key) for key in OF_DIFFUSERS),
]


@pytest.mark.parametrize("family, file, key", ATTACKS)
def test_a_key_that_could_choose_code_is_refused_by_name(
    models: Path, tmp_path: Path, family: str, file: str, key: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for part in (models / family).iterdir():
        (model / part.name).symlink_to(part)
    changed = model / file
    changed.parent.unlink()
    shutil.copytree(models / family / changed.parent.name, changed.parent)
    config = json.loads(changed.read_text()) if changed.exists() else {}
    for value in ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "evil/code", "sdpa", 1, True):
        changed.write_text(json.dumps(config | {key: value}))
        with pytest.raises(ModelFilesRefused, match=rf"^{file}: '{key}' is no key that is known here; remove it$"):
            load(family, model)


def test_files_that_name_another_model_are_not_read(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "flux", tmp_path)
    for part in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        for file in ("adapter_config.json", "generation_config.json", "quantize_config.json", "processor_config.json"):
            (model / part / file).write_text(json.dumps({"base_model_name_or_path": "evil/code", "auto_map": {}}))
    assert np.array_equal(drawn(load("flux", model), "flux"), drawn(load("flux", models / "flux"), "flux"))


def test_tokens_that_the_encoder_does_not_have_are_refused(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sd1", tmp_path)
    added = {"570": {"content": "<|endoftext|>"}, "571": {"content": "<new>"}}
    file = model / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}))
    with pytest.raises(ModelFilesRefused, match="tokenizer: its largest token is 571, the encoder's vocab_size 571"):
        load("sd1", model)


def test_a_prompt_is_cut_at_the_encoder_s_length_where_the_tokenizer_says_none(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sd1", tmp_path)
    (model / "tokenizer" / "tokenizer_config.json").unlink()
    assert load("sd1", model).tokenizer.model_max_length == 32


def inpainting(model: Path) -> None:
    """As the UNet of an inpainting model is: five channels more come in."""
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
    started = Daemon(f'[device]\ndevice = "cpu"\ndtype = "bfloat16"\n{config}').wait_until_serving()
    yield started
    assert started.stop() == 0


@pytest.mark.parametrize(
    "name, told",
    [
        ("inpainting", "unet/config.json: in_channels is 9, expected 4 (the VAE's latent_channels)"),
        ("noise", "text_encoder_2: 1"),
        ("quantized", "text_encoder_3/config.json: 'quantization_config' is no key that is known here"),
        ("xl-as-1", "unet/config.json: cross_attention_dim is 64, expected 32 (the text encoder's hidden_size)"),
    ],
)
def test_the_daemon_refuses_at_load_what_would_fail_or_draw_noise(daemon: Daemon, name: str, told: str) -> None:
    with daemon.client() as client, pytest.raises(WeaveError) as refused:
        client.load_model(name)
    assert refused.value.code is ErrorCode.WORKER_FAILED
    wait_for(lambda: [line for line in daemon.events("job_failed") if line["detail"].startswith(told)])


@pytest.mark.parametrize("name, family", [("mixed", "sd3"), ("sd1", "sd1"), ("sdxl", "sdxl"), ("flux", "flux")])
def test_the_daemon_draws_each_family_in_the_default_dtype_of_a_gpu(daemon: Daemon, name: str, family: str) -> None:
    with daemon.client() as client:
        picture = pixels(images(draw(client, model=name, width=64, height=64, steps=2, format="raw"))[0])
        assert next(model for model in [client.status()]).dtype == "bfloat16"
    assert picture.shape == (64, 64, 3) and picture.std() > 10


OTHER_SIZE = ("            width=parameters.width,\n", "            width=parameters.width * 2,\n")
UNCHECKED = ("    _check_size(drawn, parameters)\n", "")


def test_a_picture_of_another_size_is_never_sent() -> None:
    daemon = daemon_of({"gpu_worker/pipeline.py": [OTHER_SIZE]})
    try:
        with daemon.client() as client:
            got: list[Any] = []
            with pytest.raises(WeaveError) as failed:
                got.extend(client.generate("a red circle", width=64, height=64, steps=2))
            assert failed.value.code is ErrorCode.INTERNAL
            assert not [answer for answer in got if isinstance(answer.event, Image)]
        told = "the model drew 128x64, asked for was 64x64"
        wait_for(lambda: [line for line in daemon.events("job_failed") if told in line["detail"]])
    finally:
        daemon.stop()


def test_without_the_check_of_sizes_a_client_would_get_it() -> None:
    daemon = daemon_of({"gpu_worker/pipeline.py": [OTHER_SIZE, UNCHECKED]}, MODEL)
    try:
        with daemon.client() as client:
            assert pixels(images(draw(client, width=64, height=64, steps=2))[0]).shape == (64, 128, 3)
    finally:
        daemon.stop()


def test_the_demo_model_is_what_plain_diffusers_draws() -> None:
    ours, theirs = load("sd1", DEMO_MODEL), plain_pipeline("sd1", DEMO_MODEL, torch.float32)
    assert np.array_equal(drawn(ours, "sd1"), drawn(theirs, "sd1"))
