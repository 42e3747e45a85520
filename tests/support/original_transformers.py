"""The tensors of transformers as their authors' files have them, from those of diffusers."""

import re
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]

_FLUX2 = {
    r"^x_embedder": "img_in",
    r"^context_embedder": "txt_in",
    r"^time_guidance_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"^time_guidance_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"_modulation(\w*)\.linear": r"_modulation\1.lin",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^proj_out": "final_layer.linear",
    r"^single_transformer_blocks": "single_blocks",
    r"attn\.to_qkv_mlp_proj": "linear1",
    r"(single_blocks\.\d+\.)attn\.to_out": r"\1linear2",
    r"(single_blocks\.\d+\.)attn\.norm_q\.weight": r"\1norm.query_norm.scale",
    r"(single_blocks\.\d+\.)attn\.norm_k\.weight": r"\1norm.key_norm.scale",
    r"^transformer_blocks": "double_blocks",
    r"attn\.norm_q\.weight": "img_attn.norm.query_norm.scale",
    r"attn\.norm_k\.weight": "img_attn.norm.key_norm.scale",
    r"attn\.norm_added_q\.weight": "txt_attn.norm.query_norm.scale",
    r"attn\.norm_added_k\.weight": "txt_attn.norm.key_norm.scale",
    r"attn\.to_out\.0": "img_attn.proj",
    r"attn\.to_add_out": "txt_attn.proj",
    r"ff\.linear_in": "img_mlp.0",
    r"ff\.linear_out": "img_mlp.2",
    r"ff_context\.linear_in": "txt_mlp.0",
    r"ff_context\.linear_out": "txt_mlp.2",
}
_Z_IMAGE = {
    r"^all_x_embedder\.2-1": "x_embedder",
    r"^all_final_layer\.2-1": "final_layer",
    r"attention\.norm_([qk])": r"attention.\1_norm",
    r"attention\.to_out\.0": "attention.out",
}
_KREA2 = {
    r"^img_in": "first",
    r"^time_embed\.linear_1": "tmlp.0",
    r"^time_embed\.linear_2": "tmlp.2",
    r"^time_mod_proj": "tproj.1",
    r"^txt_in\.norm\.weight": "txtmlp.0.scale",
    r"^txt_in\.linear_1": "txtmlp.1",
    r"^txt_in\.linear_2": "txtmlp.3",
    r"^text_fusion": "txtfusion",
    r"^transformer_blocks": "blocks",
    r"^final_layer\.linear": "last.linear",
    r"^final_layer\.norm\.weight": "last.norm.scale",
    r"^final_layer\.scale_shift_table": "last.modulation.lin",
    r"scale_shift_table": "mod.lin",
    r"attn\.to_([qkv])": r"attn.w\1",
    r"attn\.to_out\.0": "attn.wo",
    r"attn\.to_gate": "attn.gate",
    r"attn\.norm_([qk])\.weight": r"attn.qknorm.\1norm.scale",
    r"\.ff\.": ".mlp.",
    r"\.norm1\.weight": ".prenorm.scale",
    r"\.norm2\.weight": ".postnorm.scale",
}


def flux2(tensors: Tensors) -> Tensors:
    last = "norm_out.linear.weight"
    shifted_first = torch.cat(tensors[last].chunk(2)[::-1])
    image = _fused(tensors | {last: shifted_first}, "attn.to_q.", "attn.to_k.", "attn.to_v.", "img_attn.qkv.")
    return renamed(_fused(image, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "txt_attn.qkv"), _FLUX2)


def z_image(tensors: Tensors) -> Tensors:
    """With a layer that nothing uses."""
    fused = _fused(tensors, "attention.to_q", "attention.to_k", "attention.to_v", "attention.qkv")
    return {**renamed(fused, _Z_IMAGE), "norm_final.weight": torch.ones(3)}


def krea2(tensors: Tensors) -> Tensors:
    flat = {
        name: tensor.flatten() if re.match(r"transformer_blocks.*scale_shift", name) else tensor
        for name, tensor in tensors.items()
    }
    return renamed(flat, _KREA2)


def renamed(tensors: Tensors, patterns: Mapping[str, str]) -> Tensors:
    """Every name, changed by each pattern that is in it."""
    found = {}
    for name, tensor in tensors.items():
        original = name
        for pattern, replacement in patterns.items():
            original = re.sub(pattern, replacement, original)
        found[original] = tensor
    assert len(found) == len(tensors)
    return found


def _fused(tensors: Tensors, q: str, k: str, v: str, fused: str) -> Tensors:
    """The rows of `q`, `k` and `v` in one."""
    found = {}
    for name, tensor in tensors.items():
        if q in name:
            rows = [tensor, tensors[name.replace(q, k)], tensors[name.replace(q, v)]]
            found[name.replace(q, fused)] = torch.cat(rows)
        elif k not in name and v not in name:
            found[name] = tensor
    return found


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


def sd3(tensors: Tensors, layers: int) -> Tensors:
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


def flux(tensors: Tensors) -> Tensors:
    """FLUX.1's and Chroma's."""
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
        if found := re.match(r"distilled_guidance_layer\.norms\.\d+", name):
            scales[f"{found[0]}.scale"] = tensor
        elif found := re.match(r"(distilled_guidance_layer\.(?:layers\.\d+|in_proj|out_proj))(\.linear_[12])?", name):
            inner = {".linear_1": ".in_layer", ".linear_2": ".out_layer", None: ""}[found[2]]
            names[found[1] + inner] = [found[0]]
        elif found := re.match(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight", name):
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
