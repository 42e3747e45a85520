"""Single files as people share them, made from small models in diffusers layout: the other direction of what the daemon
does, written down independently of it.

Names: the original code of Stable Diffusion (LDM) and FLUX, OpenCLIP, and ComfyUI's checkpoints.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support import original_transformers as originals

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def make_single_file(family: str, model: Path, file: Path, marks: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """All of `model`'s weights in one file, and `marks`: further tensors, given as numbers or lists of these."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in marks.items()}
    for part, prefix in _PREFIXES[family].items():
        if (model / part).is_dir():
            tensors |= {prefix + name: tensor for name, tensor in converted(family, model, part).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def converted(family: str, model: Path, part: str) -> Tensors:
    """A component's tensors by their names in a file of its own."""
    (weights,) = (model / part).glob("*.safetensors")
    tensors = load_file(weights)
    config = json.loads((model / part / "config.json").read_text())
    if part == "unet":
        return {_unet(name, config): tensor for name, tensor in tensors.items()}
    if part == "vae":
        return _vaes(family, tensors, config)
    if part == "transformer":
        return _transformer(family, tensors, config)
    if family in ("z-image", "flux2-klein", "krea2") or family.startswith("qwen-image"):
        return {_qwen(family, name): tensor for name, tensor in tensors.items()}
    tensors = {_clip(name) if "t5" not in config["model_type"] else name: tensor for name, tensor in tensors.items()}
    return _open_clip(tensors) if _PREFIXES[family][part].endswith(".model.") else tensors


def _transformer(family: str, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    if family == "sd3":
        return originals.sd3(tensors, config["num_layers"])
    convert = {
        "flux": originals.flux,
        "chroma": originals.flux,
        "flux2-klein": originals.flux2,
        "z-image": originals.z_image,
        "krea2": originals.krea2,
    }
    return convert[family](tensors) if family in convert else tensors


def _qwen(family: str, name: str) -> str:
    """As in the files for ComfyUI, which are those of older versions of transformers."""
    if family.startswith("qwen-image"):
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    return name if family == "flux2-klein" else f"model.{name}"


def _vaes(family: str, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    if family == "krea2" or family.startswith("qwen-image"):
        return _wan_vae(tensors, config["num_res_blocks"] + 2)
    blocks = len(config["block_out_channels"])
    tensors = _vae_of_flux2(tensors) if family == "flux2-klein" else tensors
    return {_vae(name, blocks): _conv(name, tensor) for name, tensor in tensors.items()}


_PREFIXES = {
    "sd1": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.",
    },
    "sd2": {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sd3": {
        "transformer": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    },
    "flux": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    },
    "chroma": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.t5xxl.transformer.",
    },
    "z-image": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.qwen3_4b.transformer.",
    },
    "flux2-klein": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.qwen3_4b.transformer.",
    },
    "qwen-image": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.qwen25_7b.transformer.",
    },
}
_PREFIXES |= dict.fromkeys(("qwen-image-edit", "qwen-image-edit-plus"), _PREFIXES["qwen-image"])


def _unet(name: str, config: dict[str, object]) -> str:
    module, _, kind = name.rpartition(".")
    if module in _UNET:
        return f"{_UNET[module]}.{kind}"
    per_block = int(str(config["layers_per_block"])) + 1
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        number = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{number}.{_in_unet_block(found[1], found[3])}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    assert found, name
    side, block, what, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if what == "downsamplers":
        return f"input_blocks.{per_block * (block + 1)}.0.{rest.replace('conv', 'op')}"
    if what == "upsamplers":
        types = config["up_block_types"]
        assert isinstance(types, list)
        return f"output_blocks.{per_block * (block + 1) - 1}.{2 if 'CrossAttn' in types[block] else 1}.{rest}"
    number = per_block * block + layer + (1 if side == "down" else 0)
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{number}.{0 if what == 'resnets' else 1}.{_in_unet_block(what, rest)}"


def _in_unet_block(what: str, rest: str) -> str:
    module, _, kind = rest.rpartition(".")
    return f"{_RESNET[module]}.{kind}" if what == "resnets" else rest


def _vae(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in {
        "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }.items():
        name = name.replace(new, old)
    return name


def _conv(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The attention in the VAE's middle has convolutions of 1x1 in place of linear layers."""
    return tensor[:, :, None, None] if "mid_block.attentions" in name and tensor.dim() == 2 else tensor


_IN_WAN = {
    r"mid_block\.resnets\.0": "middle.0",
    r"mid_block\.resnets\.1": "middle.2",
    r"mid_block\.attentions\.0": "middle.1",
    r"down_blocks": "downsamples",
    r"norm1": "residual.0",
    r"conv1": "residual.2",
    r"norm2": "residual.3",
    r"conv2": "residual.6",
    r"conv_shortcut": "shortcut",
    r"norm_out": "head.0",
    r"conv_out": "head.2",
    r"conv_in": "conv1",
    r"^quant_conv": "conv1",
    r"^post_quant_conv": "conv2",
}


def _wan_vae(tensors: Tensors, per_block: int) -> Tensors:
    """Qwen-Image's VAE. The decoder has so many layers `per_block`, with the upsampler."""

    def numbered(found: re.Match[str]) -> str:
        layer = per_block - 1 if found[2] == "upsamplers" else int(found[3])
        return f"upsamples.{per_block * int(found[1]) + layer}"

    joined = {re.sub(r"up_blocks\.(\d+)\.(\w+)\.(\d+)", numbered, name): it for name, it in tensors.items()}
    return originals.renamed(joined, _IN_WAN)


def _vae_of_flux2(tensors: Tensors) -> Tensors:
    """The names that differ from those of FLUX.1's VAE."""
    return originals.renamed(
        tensors, {r"^quant_conv": "encoder.quant_conv", r"^post_quant_conv": "decoder.post_quant_conv"}
    )


def _clip(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def _open_clip(tensors: Tensors) -> Tensors:
    out: Tensors = {}
    for name, tensor in tensors.items():
        if found := re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name):
            three = [tensors[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            out[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(three)
        elif "k_proj" not in name and "v_proj" not in name:
            renamed = name
            for new, old in {
                "text_model.embeddings.position_embedding.weight": "positional_embedding",
                "text_model.embeddings.token_embedding": "token_embedding",
                "text_model.final_layer_norm": "ln_final",
                "text_model.encoder.layers.": "transformer.resblocks.",
                "self_attn": "attn",
                "layer_norm": "ln_",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }.items():
                renamed = renamed.replace(new, old)
            out[renamed] = tensor
    if "text_projection.weight" in out:
        out["text_projection"] = out.pop("text_projection.weight").T
    return out
