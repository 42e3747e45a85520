"""Single files as people share them, made from small models in diffusers layout: the other direction of what the daemon
does, written down independently of it.

Names: the original code of Stable Diffusion (LDM) and FLUX, OpenCLIP, and ComfyUI's checkpoints.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

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


def make_single_file(family: str, model: Path, file: Path, marks: tuple[str, ...] = ()) -> Path:
    """All of `model`'s weights in one file; `marks` are the names of empty tensors to add."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {mark: torch.zeros(0) for mark in marks}
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
        return {_vae(name, len(config["block_out_channels"])): _conv(name, tensor) for name, tensor in tensors.items()}
    if part == "transformer":
        return _sd3(tensors, config["num_layers"]) if family == "sd3" else _flux(tensors)
    tensors = {_clip(name) if "t5" not in config["model_type"] else name: tensor for name, tensor in tensors.items()}
    return _open_clip(tensors) if _PREFIXES[family][part].endswith(".model.") else tensors


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
}


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


def _joined(tensors: Tensors, names: dict[str, list[str]]) -> Tensors:
    """By a module's name, the modules whose rows it holds one after the other."""
    return {
        f"{old}.{kind}": torch.cat([tensors[f"{name}.{kind}"] for name in parts])
        for old, parts in names.items()
        for kind in ("weight", "bias")
        if f"{parts[0]}.{kind}" in tensors
    }


def _swapped(tensors: Tensors, *modules: str) -> Tensors:
    """Shift and scale in the other order."""
    return {
        name: torch.cat(tensor.chunk(2)[::-1]) if name.rpartition(".")[0] in modules else tensor
        for name, tensor in tensors.items()
    }


# What the image's side and the text's side of a block are called in diffusers: normalisation, attention, layers.
_SIDES = (
    ("norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
    ("norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
)


def _sd3(tensors: Tensors, layers: int) -> Tensors:
    names = {
        "x_embedder.proj": ["pos_embed.proj"],
        "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
        "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
        "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
        "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
        "context_embedder": ["context_embedder"],
        "final_layer.linear": ["proj_out"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    }
    for i in range(layers):
        new = f"transformer_blocks.{i}"
        for side, (norm, qkv, out, ff) in zip(("x_block", "context_block"), _SIDES, strict=True):
            old = f"joint_blocks.{i}.{side}"
            names |= {
                f"{old}.adaLN_modulation.1": [f"{new}.{norm}.linear"],
                f"{old}.attn.qkv": [f"{new}.attn.{x}" for x in qkv],
                f"{old}.attn.proj": [f"{new}.attn.{out}"],
                f"{old}.mlp.fc1": [f"{new}.{ff}.net.0.proj"],
                f"{old}.mlp.fc2": [f"{new}.{ff}.net.2"],
            }
    last = f"joint_blocks.{layers - 1}.context_block.adaLN_modulation.1"
    joined = _joined(tensors, names) | {"pos_embed": tensors["pos_embed.pos_embed"]}
    return _swapped(joined, last, "final_layer.adaLN_modulation.1")


def _flux(tensors: Tensors) -> Tensors:
    names = {
        "img_in": ["x_embedder"],
        "txt_in": ["context_embedder"],
        "final_layer.linear": ["proj_out"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    }
    for old, new in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        names[f"{old}.in_layer"] = [f"time_text_embed.{new}_embedder.linear_1"]
        names[f"{old}.out_layer"] = [f"time_text_embed.{new}_embedder.linear_2"]
    scales: Tensors = {}
    for name, tensor in tensors.items():
        if found := re.match(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight", name):
            which = {"q": "query_norm", "k": "key_norm"}[found[4]]
            side = "norm" if found[1] else f"{'txt' if found[3] else 'img'}_attn.norm"
            scales[f"{'single' if found[1] else 'double'}_blocks.{found[2]}.{side}.{which}.scale"] = tensor
        elif found := re.match(r"(single_)?transformer_blocks\.(\d+)\.", name):
            new, i = found[0], found[2]
            if found[1]:
                names |= {
                    f"single_blocks.{i}.modulation.lin": [f"{new}norm.linear"],
                    f"single_blocks.{i}.linear1": [
                        f"{new}{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                    ],
                    f"single_blocks.{i}.linear2": [f"{new}proj_out"],
                }
                continue
            for side, (norm, qkv, out, ff) in zip(("img", "txt"), _SIDES, strict=True):
                names |= {
                    f"double_blocks.{i}.{side}_mod.lin": [f"{new}{norm}.linear"],
                    f"double_blocks.{i}.{side}_attn.qkv": [f"{new}attn.{x}" for x in qkv],
                    f"double_blocks.{i}.{side}_attn.proj": [f"{new}attn.{out}"],
                    f"double_blocks.{i}.{side}_mlp.0": [f"{new}{ff}.net.0.proj"],
                    f"double_blocks.{i}.{side}_mlp.2": [f"{new}{ff}.net.2"],
                }
    return _swapped(_joined(tensors, names) | scales, "final_layer.adaLN_modulation.1")
