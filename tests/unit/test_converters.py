"""The tables for transformers in single files, and Wan's VAE, compared with diffusers' own converters."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as library
from safetensors.torch import load_file

from tests.support import tiny_models
from tests.support.single_files import converted
from weave.gpu_worker.converters import convert

Tensors = dict[str, torch.Tensor]
FLUX_WIDTH = 3072  # which diffusers' converter takes for granted
SD3_WIDTH, SD3_LAYERS = 24, 3


def linear(tensors: Tensors, name: str, rows: int) -> None:
    tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.randn(rows, 2), torch.randn(rows)


def flux() -> Tensors:
    tensors: Tensors = {}
    for name in ("img_in", "txt_in", "final_layer.linear"):
        linear(tensors, name, 8)
    for name in ("time_in", "vector_in", "guidance_in"):
        linear(tensors, f"{name}.in_layer", 8)
        linear(tensors, f"{name}.out_layer", 8)
    linear(tensors, "final_layer.adaLN_modulation.1", 2 * FLUX_WIDTH)
    for block in range(2):
        for side in ("img", "txt"):
            for module, rows in {"mod.lin": 6, "attn.qkv": 3, "attn.proj": 1, "mlp.0": 4, "mlp.2": 1}.items():
                linear(tensors, f"double_blocks.{block}.{side}_{module}", rows * FLUX_WIDTH)
            for norm in ("query_norm", "key_norm"):
                tensors[f"double_blocks.{block}.{side}_attn.norm.{norm}.scale"] = torch.randn(128)
        for module, rows in {"modulation.lin": 3, "linear1": 7, "linear2": 1}.items():
            linear(tensors, f"single_blocks.{block}.{module}", rows * FLUX_WIDTH)
        for norm in ("query_norm", "key_norm"):
            tensors[f"single_blocks.{block}.norm.{norm}.scale"] = torch.randn(128)
    return tensors


def chroma() -> Tensors:
    modulations = ("time_in", "vector_in", "guidance_in", "mod.lin", "modulation")
    tensors = {name: tensor for name, tensor in flux().items() if not any(part in name for part in modulations)}
    for name in ("in_proj", "out_proj", *(f"layers.{layer}.{way}_layer" for layer in (0, 1) for way in ("in", "out"))):
        linear(tensors, f"distilled_guidance_layer.{name}", 8)
    for layer in (0, 1):
        tensors[f"distilled_guidance_layer.norms.{layer}.scale"] = torch.randn(8)
    return tensors


def sd3() -> Tensors:
    """Of SD 3.5 medium's kind: normalised queries and keys, and two attentions in the first block."""
    tensors: Tensors = {"pos_embed": torch.randn(1, 9, SD3_WIDTH)}
    for name in ("x_embedder.proj", "context_embedder", "final_layer.linear"):
        linear(tensors, name, SD3_WIDTH)
    for name in ("t_embedder", "y_embedder"):
        linear(tensors, f"{name}.mlp.0", SD3_WIDTH)
        linear(tensors, f"{name}.mlp.2", SD3_WIDTH)
    linear(tensors, "final_layer.adaLN_modulation.1", 2 * SD3_WIDTH)
    for block in range(SD3_LAYERS):
        for side in ("x_block", "context_block"):
            prefix = f"joint_blocks.{block}.{side}"
            is_last = side == "context_block" and block == SD3_LAYERS - 1
            rows = 2 if is_last else 9 if side == "x_block" and block == 0 else 6
            linear(tensors, f"{prefix}.adaLN_modulation.1", rows * SD3_WIDTH)
            attention(tensors, f"{prefix}.attn", projected=not is_last)
            if not is_last:
                linear(tensors, f"{prefix}.mlp.fc1", 4 * SD3_WIDTH)
                linear(tensors, f"{prefix}.mlp.fc2", SD3_WIDTH)
    attention(tensors, "joint_blocks.0.x_block.attn2", projected=True)
    return tensors


def attention(tensors: Tensors, name: str, *, projected: bool) -> None:
    linear(tensors, f"{name}.qkv", 3 * SD3_WIDTH)
    if projected:
        linear(tensors, f"{name}.proj", SD3_WIDTH)
    for norm in ("ln_q", "ln_k"):
        tensors[f"{name}.{norm}.weight"] = torch.randn(8)


@pytest.mark.parametrize(
    ("name", "make", "library_converter"),
    [
        ("flux", flux, library.convert_flux_transformer_checkpoint_to_diffusers),
        ("flux", chroma, library.convert_chroma_transformer_checkpoint_to_diffusers),
        ("sd3", sd3, library.convert_sd3_transformer_checkpoint_to_diffusers),
    ],
)
def test_a_table_gives_what_diffusers_gives(
    name: str, make: Callable[[], Tensors], library_converter: Callable[[Tensors], Tensors]
) -> None:
    tensors = make()
    converted, unknown = convert(name, tensors, {"num_layers": SD3_LAYERS})
    expected = library_converter(dict(tensors))
    assert unknown == set()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("name", "make"), [("flux", flux), ("sd3", sd3)])
def test_a_table_names_what_it_does_not_know(name: str, make: Callable[[], Tensors]) -> None:
    more = {"new.weight": torch.zeros(3), "context_embedder.weight.x": torch.zeros(2), "x": torch.tensor(1.0)}
    _, unknown = convert(name, make() | more, {"num_layers": SD3_LAYERS})
    assert unknown == more.keys()


@pytest.mark.parametrize(
    ("family", "name", "library_converter"),
    [
        ("flux2-klein", "flux2", library.convert_flux2_transformer_checkpoint_to_diffusers),
        ("z-image", "z_image", library.convert_z_image_transformer_checkpoint_to_diffusers),
        ("krea2", "krea2", library.convert_krea2_transformer_checkpoint_to_diffusers),
    ],
)
def test_a_table_gives_the_models_own_tensors(
    tmp_path: Path, family: str, name: str, library_converter: Callable[[Tensors], Tensors]
) -> None:
    model = tiny_models.make(family, tmp_path / "model")
    tensors = converted(family, model, "transformer")
    more = {"new.weight": torch.zeros(3), "blocks.0.new.weight": torch.zeros(3), "x": torch.tensor(1.0)}
    found, unknown = convert(name, tensors | more, {})
    own = load_file(next((model / "transformer").glob("*.safetensors")))
    assert unknown == more.keys() and found.keys() == own.keys()
    expected = library_converter(dict(tensors))
    assert all(torch.equal(found[key], own[key]) and torch.equal(found[key], expected[key]) for key in own)


def test_wans_vae_is_converted_as_diffusers_does(tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    vae.save_pretrained(tmp_path / "vae")
    tensors = converted("qwen-image", tmp_path, "vae")
    found, unknown = convert("vae_of_wan", tensors | {"encoder.downsamples.0.new.weight": torch.zeros(1)}, {})
    expected = library.convert_wan_vae_to_diffusers(tensors)
    assert unknown == {"encoder.downsamples.0.new.weight"}
    assert found.keys() == vae.state_dict().keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
