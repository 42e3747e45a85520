"""Keys of LoRAs: names of layers against the converters of diffusers for models of real size, and what is refused."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors.torch import save_file

from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused, Tensor
from weave.models.lora_keys import LoraHeader, common_alphas, matrices, read_header
from weave.models.lora_layers import Layers, patches

SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def layers_of(denoiser: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    kinds = torch.nn.Linear | torch.nn.Conv2d
    return {name: tuple(it.weight.shape) for name, it in denoiser.named_modules() if isinstance(it, kinds)}


def kohya(family: str, layers: Layers, config: Any, *, dotted: bool = False) -> dict[str, torch.Tensor]:
    """Matrices of rank 1 for every layer that has an original name. No two are alike. `dotted` is as for ComfyUI."""
    known = FAMILIES[family]
    parts: dict[str, list[str]] = {}
    for original, layer in known.original_names(layers[known.denoiser], config):
        parts.setdefault(original, []).append(layer)
    tensors = {}
    for number, (original, names) in enumerate(parts.items(), start=1):
        shapes = [layers[known.denoiser][name] for name in names]
        name = f"diffusion_model.{original}" if dotted else "lora_unet_" + original.replace(".", "_")
        up, down = ("lora_B", "lora_A") if dotted else ("lora_up", "lora_down")
        ones = [1] * (len(shapes[0]) - 2)
        rows = sum(shape[0] for shape in shapes)
        tensors[f"{name}.{up}.weight"] = torch.arange(number, number + rows).float().reshape(rows, 1, *ones)
        tensors[f"{name}.{down}.weight"] = torch.full((1, *shapes[0][1:]), float(number))
    return tensors


def header_of(tensors: dict[str, torch.Tensor]) -> LoraHeader:
    return LoraHeader({key: Tensor("F32", tuple(tensor.shape)) for key, tensor in tensors.items()})


def check_against(
    converted: dict[str, torch.Tensor], family: str, layers: Layers, config: Any, tensors: dict[str, torch.Tensor]
) -> None:
    found = patches(header_of(tensors), FAMILIES[family], layers, config)
    assert len(found) > 100
    for patch in found:
        assert torch.equal(converted.pop(f"{patch.layer}.lora_A.weight"), tensors[patch.down]), patch.layer
        assert torch.equal(converted.pop(f"{patch.layer}.lora_B.weight"), tensors[patch.up][patch.rows]), patch.layer
    assert converted == {}


def test_original_names_of_sdxl_are_those_that_diffusers_finds() -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SDXL)
    layers = {"unet": layers_of(unet)}
    tensors = kohya("sdxl", layers, unet.config)
    named, _ = diffusers.StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=unet.config)
    converted = convert_unet_state_dict_to_peft({key.removeprefix("unet."): it for key, it in named.items()})
    check_against(converted, "sdxl", layers, unet.config, tensors)
    assert len(tensors) == 2 * len(layers["unet"])


def test_original_names_of_flux_are_those_that_diffusers_finds() -> None:
    with torch.device("meta"):
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    layers = {"transformer": layers_of(transformer)}
    tensors = kohya("flux", layers, transformer.config)
    named = diffusers.FluxPipeline.lora_state_dict(dict(tensors))
    converted = {key.removeprefix("transformer."): it for key, it in named.items()}
    check_against(converted, "flux", layers, transformer.config, tensors)
    # The rows of the last modulation are in another order.
    named = {patch.layer for patch in patches(header_of(tensors), FAMILIES["flux"], layers, transformer.config)}
    assert layers["transformer"].keys() - named == {"norm_out.linear"}


NEWER: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "flux2-klein": (
        diffusers.Flux2Transformer2DModel,
        {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
         "guidance_embeds": False},
        diffusers.Flux2KleinPipeline,
    ),
    "krea2": (diffusers.Krea2Transformer2DModel, {}, diffusers.Krea2Pipeline),
}  # fmt: skip


@pytest.mark.parametrize("family", NEWER)
def test_original_names_of_newer_families_are_as_in_diffusers(family: str) -> None:
    made, config, pipeline = NEWER[family]
    with torch.device("meta"):
        transformer = made(**config)
    layers = {"transformer": layers_of(transformer)}
    tensors = kohya(family, layers, transformer.config, dotted=True)
    named = pipeline.lora_state_dict(dict(tensors))
    converted = {key.removeprefix("transformer."): it for key, it in named.items()}
    check_against(converted, family, layers, transformer.config, tensors)
    unnamed = {"norm_out.linear"} if family == "flux2-klein" else set()  # its rows are in another order
    found = {patch.layer for patch in patches(header_of(tensors), FAMILIES[family], layers, transformer.config)}
    assert layers["transformer"].keys() - found == unnamed


@pytest.mark.parametrize(
    ("family", "made"),
    [("chroma", diffusers.ChromaTransformer2DModel), ("z-image", diffusers.ZImageTransformer2DModel)],
)
def test_every_layer_has_an_original_name(family: str, made: Any) -> None:
    """diffusers does not know all of these."""
    with torch.device("meta"):
        transformer = made()
    layers = layers_of(transformer)
    named = [layer for _, layer in FAMILIES[family].original_names(layers, transformer.config)]
    assert len(named) == len(set(named)) and set(named) == layers.keys()


@pytest.mark.parametrize("dual", [(), tuple(range(13))], ids=["SD 3", "SD 3.5 medium"])
def test_sd3s_layers_but_two_modulations_have_original_names(dual: tuple[int, ...]) -> None:
    with torch.device("meta"):
        transformer = diffusers.SD3Transformer2DModel(num_layers=24, dual_attention_layers=dual)
    layers = layers_of(transformer)
    named = [layer for _, layer in FAMILIES["sd3"].original_names(layers, transformer.config)]
    assert len(named) == len(set(named))
    assert layers.keys() - set(named) == {"norm_out.linear", "transformer_blocks.23.norm1_context.linear"}


LAYERS = {"unet": {"conv_in": (16, 4, 3, 3), "mid_block.attentions.0.proj_in": (32, 32, 1, 1)}, "text_encoder": {}}
PROJ = "unet.mid_block.attentions.0.proj_in"
GOOD = {f"{PROJ}.lora_A.weight": [2, 32], f"{PROJ}.lora_B.weight": [32, 2]}


def planned(shapes: dict[str, list[int]], dtype: str = "F32", metadata: Any = None) -> Any:
    tensors = {key: Tensor(dtype, tuple(shape)) for key, shape in shapes.items()}
    return patches(LoraHeader(tensors, metadata), FAMILIES["sd1"], LAYERS, {"layers_per_block": 2})


def test_a_convolution_of_one_pixel_may_be_a_matrix() -> None:
    four = {key: [*shape, 1, 1] for key, shape in GOOD.items()}
    assert planned(GOOD) == planned(four) and len(planned(GOOD)) == 1


KOHYA = {"lora_unet_conv_in.lora_down.weight": [2, 4, 3, 3], "lora_unet_conv_in.lora_up.weight": [16, 2, 1, 1]}
REFUSED: dict[str, tuple[dict[str, list[int]], str]] = {
    "DoRA of kohya": ({**KOHYA, "lora_unet_conv_in.dora_scale": [16]}, r"conv_in\.dora_scale' belongs to DoRA"),
    "DoRA of peft": ({**GOOD, f"{PROJ}.lora_magnitude_vector": [32]}, r"magnitude_vector' belongs to DoRA"),
    "LoHa": ({"lora_unet_conv_in.hada_w1_a": [16, 2]}, "hada_w1_a' belongs to LoHa"),
    "LoKr": ({"lora_unet_conv_in.lokr_w1": [4, 4]}, "lokr_w1' belongs to LoKr"),
    "a bias": ({**GOOD, f"{PROJ}.lora_B.bias": [32]}, "lora_B.bias' belongs to a change of biases"),
    "a whole difference": ({"diffusion_model.conv_in.diff": [16, 4, 3, 3]}, "diff' belongs to a difference"),
    "an unknown key": ({**GOOD, "clip_skip": [1]}, "'clip_skip' is not a known key of a LoRA"),
    "no tensors": ({}, "the file has no tensors"),
    "half of it": (dict([next(iter(GOOD.items()))]), r"lora_A.weight' lacks its counterpart \(up\)"),
    "another layer": ({key.replace("proj_in", "proj_up"): it for key, it in GOOD.items()}, "does not have"),
    "another component": ({key.replace("unet.", "text_encoder_2."): it for key, it in GOOD.items()}, "does not have"),
    "rows too few": (GOOD | {f"{PROJ}.lora_B.weight": [31, 2]}, r"of shape \[31, 2\], expected \[32, 2\]"),
    "another rank": (GOOD | {f"{PROJ}.lora_B.weight": [32, 3]}, r"of shape \[32, 3\], expected \[32, 2\]"),
    "another input": (GOOD | {f"{PROJ}.lora_A.weight": [2, 33]}, r"of shape \[2, 33\], expected \[2, 32, 1, 1\]"),
    "rank 0": (GOOD | {f"{PROJ}.lora_A.weight": [0, 32]}, "has no rows"),
    "a scalar": (GOOD | {f"{PROJ}.lora_A.weight": []}, "has no rows"),
    "several alphas": ({**GOOD, f"{PROJ}.alpha": [2]}, "alpha' is not a single number"),
    "a layer twice": (
        {**KOHYA, **{key.replace("lora_unet_", "unet."): it for key, it in KOHYA.items()}},
        "'lora_unet_conv_in.lora_down.weight' are of one layer",
    ),
    "a kind twice": ({**GOOD, f"{PROJ}.lora_down.weight": [2, 32]}, "are of one layer"),
    "control characters": ({"\x1b[2J": [1]}, r"^'\\x1b\[2J' is not a known key"),
}


@pytest.mark.parametrize("shapes, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_lora_of_the_model_is_refused(shapes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ModelFilesRefused, match=message):
        planned(shapes)


def test_matrices_of_integers_are_refused() -> None:
    with pytest.raises(ModelFilesRefused, match="is of I8, expected one of F16, BF16, F32, F64"):
        planned(GOOD, dtype="I8")


SETTINGS = {
    '{"unet.lora_alpha": 8, "unet.r": 4, "unet.use_dora": false, "unet.alpha_pattern": {}}': 8.0,
    '{"lora_alpha": 8, "r": 4}': 8.0,
    '{"text_encoder.lora_alpha": 8}': None,
    '{"r": 4}': None,
    "{}": None,
}


@pytest.mark.parametrize("text, alpha", SETTINGS.items())
def test_alpha_may_be_in_the_settings_that_diffusers_saves(text: str, alpha: float | None) -> None:
    (patch,) = planned(GOOD, metadata={"format": "pt", "lora_adapter_metadata": text})
    assert (patch.common_alpha, patch.alpha) == (alpha, None)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"unet.use_rslora": true}', "has use_rslora True, which is not supported"),
        ('{"unet.use_dora": true}', "has use_dora True"),
        ('{"unet.alpha_pattern": {"conv_in": 3}}', "has alpha_pattern"),
        ('{"unet.lora_alpha": "8"}', "has lora_alpha '8', expected a number"),
        ('{"unet.lora_alpha": NaN}', "has lora_alpha nan, expected a number"),
        ("[1]", "expected an object in JSON"),
        ("{", "expected an object in JSON"),
        ("[" * 100_000, "expected an object in JSON"),
    ],
)
def test_settings_that_would_change_the_scale_are_refused(text: str, message: str) -> None:
    with pytest.raises(ModelFilesRefused, match=message):
        common_alphas(LoraHeader({}, {"lora_adapter_metadata": text}))


def test_a_header_is_read_from_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = {key: torch.zeros(shape) for key, shape in GOOD.items()}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1})})
    header = read_header(path)
    assert [(it.rank, it.alpha) for it in matrices(header)] == [(2, None)] and common_alphas(header) == {"unet": 1.0}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFilesRefused, match=r"^lora\.safetensors: .* the download is incomplete$"):
        read_header(path)
