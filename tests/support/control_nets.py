"""Tiny ControlNets for the tiny models, and single files of them. diffusers creates the layers that add to the model
with zeros, with which a ControlNet does nothing: here all weights are random."""

import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.single_files import _unet

CLASSES = {
    "sd1": diffusers.ControlNetModel,
    "sdxl": diffusers.ControlNetModel,
    "sd3": diffusers.SD3ControlNetModel,
    "flux": diffusers.FluxControlNetModel,
    "qwen-image": diffusers.QwenImageControlNetModel,
    "z-image": diffusers.ZImageControlNetModel,
}
# The keys that a ControlNet of Z-Image has in common with the model.
_OF_Z_IMAGE = ("all_patch_size", "all_f_patch_size", "dim", "n_heads", "n_kv_heads", "n_refiner_layers", "qk_norm")


def make_control(family: str, pipeline: Any, folder: Path, seed: int, **changed: Any) -> Path:
    """For the model in `pipeline`; `changed` are values of the config that differ."""
    torch.manual_seed(seed)
    if family in ("sd1", "sd2", "sdxl"):
        wanted = {"conditioning_embedding_out_channels": (4, 8, 8, 8)}
        made = diffusers.ControlNetModel.from_unet(pipeline.unet, **wanted)
        config = dict(made.config) | changed
        made = diffusers.ControlNetModel(**{key: it for key, it in config.items() if not key.startswith("_")})
    elif family == "sd3":
        config = {**pipeline.transformer.config, "extra_conditioning_channels": 0, **changed}
        made = diffusers.SD3ControlNetModel.from_config(config)
    elif family == "z-image":
        config = {key: pipeline.transformer.config[key] for key in _OF_Z_IMAGE}
        channels = 2 * pipeline.transformer.config["in_channels"] + 1
        config |= {"control_layers_places": [0, 1], "control_refiner_layers_places": [0], "control_in_dim": channels}
        config |= {"add_control_noise_refiner": "control_noise_refiner"}
        made = diffusers.ZImageControlNetModel(**config | changed)
    else:
        made = CLASSES[family].from_config({**pipeline.transformer.config, **changed})
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    made.save_pretrained(folder)
    return folder


def as_single_file(folder: Path, path: Path) -> Path:
    """With diffusers' names of the tensors."""
    save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), path)
    return path


def as_original_file(folder: Path, path: Path, prefix: str = "control_model.") -> Path:
    """With the tensor names of the original ControlNets for Stable Diffusion."""
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({prefix + original_name(name, 1): tensor for name, tensor in tensors.items()}, path)
    return path


def original_name(name: str, layers_per_block: int) -> str:
    """The original name of a tensor that has this name in diffusers."""
    if found := re.match(r"controlnet_down_blocks\.(\d+)\.(\w+)", name):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if found := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.(\w+)", name):
        return f"input_hint_block.{2 * (int(found[1]) + 1)}.{found[2]}"
    for new, old in {
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
        "controlnet_mid_block": "middle_block_out.0",
    }.items():
        if name.startswith(new):
            return name.replace(new, old)
    return _unet(name, {"layers_per_block": layers_per_block, "up_block_types": []})


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Soft blobs of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
