"""Tensors of single files get the names that the libraries' classes give them.

The UNet, the VAE and OpenCLIP are converted by diffusers. Its converters of the transformers copy every tensor and know
the sizes of the published models only, so theirs are tables here; a test compares the two.
"""

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import single_file_utils as library

from weave.models.single_files import DENOISER

Tensors = dict[str, torch.Tensor]
# What has been converted, and the names of the tensors that no converter knows.
Converted = tuple[Tensors, set[str]]
# By the name of a module in the file, its modules in diffusers with their shares of the rows. `*` is a block's number.
Table = Mapping[str, Mapping[str, int]]


def convert(name: str, tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """`name` is that of a converter (FilePart); `tensors` have no prefix; `config` is the component's."""
    return _CONVERTERS[name](tensors, config)


def _unet(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    defaults = {"layers_per_block": 2}
    converted = library.convert_ldm_unet_checkpoint(_with_prefix(DENOISER, tensors), {**defaults, **config})
    return converted, _left_out(tensors, converted)


def _vae(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    converted = library.convert_ldm_vae_checkpoint(tensors, config)
    return converted, _left_out(tensors, converted)


def _open_clip(
    tensors: Tensors, config: Mapping[str, Any], prefix: str = "conditioner.embedders.1.model."
) -> Converted:
    model = SimpleNamespace(config=SimpleNamespace(**config))
    converted = library.convert_open_clip_checkpoint(model, _with_prefix(prefix, tensors), prefix)
    known = {"logit_scale", *library.DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values()}
    return converted, {name for name in tensors.keys() - known if not name.startswith("transformer.")}


def _open_clip_of_sd2(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """sd2 uses the states before the last layer. So its config has 23 layers, and diffusers leaves out the file's last
    one and the projection, by their names with this prefix."""
    return _open_clip(tensors, config, "cond_stage_model.model.")


def _clip_of_sd3(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    """SD3 takes the first encoder's pooled states as they are: what some files have for a projection is not SD3's."""
    return {**tensors, "text_projection.weight": torch.eye(config["projection_dim"])}, set()


def _with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _left_out(tensors: Tensors, converted: Tensors) -> set[str]:
    """The names of those that are not among `converted`, in which each keeps its memory."""
    kept = {tensor.data_ptr() for tensor in converted.values()}
    return {name for name, tensor in tensors.items() if tensor.data_ptr() not in kept}


def _rename(tensors: Tensors, table: Table, swapped: Callable[[str], bool]) -> Converted:
    """Views of the tensors, split by the rows' shares in `table`. Of `swapped` modules the halves change places: shift
    and scale of a normalisation, which diffusers has the other way round."""
    converted: Tensors = {}
    unknown = set()
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        block = re.match(r"(\w+_blocks)\.(\d+)\.", module)
        shares = table.get(re.sub(r"_blocks\.\d+\.", "_blocks.*.", module, count=1))
        rows = tensor.shape[0] if tensor.dim() else 0
        if shares is None or rows % sum(shares.values()):
            unknown.add(name)
            continue
        whole = torch.cat(tensor.chunk(2)[::-1]) if swapped(module) else tensor
        sizes = [rows // sum(shares.values()) * share for share in shares.values()]
        for target, part in zip(shares, whole.split(sizes) if len(sizes) > 1 else [whole], strict=True):
            numbered = target.replace("*", block[2]) if block else target
            converted[f"{numbered}.{kind}" if kind else numbered] = part
    return converted, unknown


def _sd3(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    last = f"joint_blocks.{config['num_layers'] - 1}.context_block.adaLN_modulation.1"
    return _rename(tensors, _SD3, {last, "final_layer.adaLN_modulation.1"}.__contains__)


def _flux(tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    return _rename(tensors, _FLUX, {"final_layer.adaLN_modulation.1"}.__contains__)


def _table(text: str) -> Table:
    """A line has a module in the file, then its modules in diffusers. `~NAME` is in the block of the first of them,
    `NAME:4` has four times the rows of the others."""
    table: dict[str, dict[str, int]] = {}
    for line in text.strip().splitlines():
        old, *targets = line.split()
        block = targets[0].partition("*")[0] + "*."
        shares = (target.replace("~", block).partition(":") for target in targets)
        table[old] = {target: int(share or 1) for target, _, share in shares}
    return table


_SD3 = _table("""
    pos_embed pos_embed.pos_embed
    x_embedder.proj pos_embed.proj
    t_embedder.mlp.0 time_text_embed.timestep_embedder.linear_1
    t_embedder.mlp.2 time_text_embed.timestep_embedder.linear_2
    y_embedder.mlp.0 time_text_embed.text_embedder.linear_1
    y_embedder.mlp.2 time_text_embed.text_embedder.linear_2
    context_embedder context_embedder
    joint_blocks.*.x_block.adaLN_modulation.1 transformer_blocks.*.norm1.linear
    joint_blocks.*.x_block.attn.qkv transformer_blocks.*.attn.to_q ~attn.to_k ~attn.to_v
    joint_blocks.*.x_block.attn.ln_q transformer_blocks.*.attn.norm_q
    joint_blocks.*.x_block.attn.ln_k transformer_blocks.*.attn.norm_k
    joint_blocks.*.x_block.attn.proj transformer_blocks.*.attn.to_out.0
    joint_blocks.*.x_block.attn2.qkv transformer_blocks.*.attn2.to_q ~attn2.to_k ~attn2.to_v
    joint_blocks.*.x_block.attn2.ln_q transformer_blocks.*.attn2.norm_q
    joint_blocks.*.x_block.attn2.ln_k transformer_blocks.*.attn2.norm_k
    joint_blocks.*.x_block.attn2.proj transformer_blocks.*.attn2.to_out.0
    joint_blocks.*.x_block.mlp.fc1 transformer_blocks.*.ff.net.0.proj
    joint_blocks.*.x_block.mlp.fc2 transformer_blocks.*.ff.net.2
    joint_blocks.*.context_block.adaLN_modulation.1 transformer_blocks.*.norm1_context.linear
    joint_blocks.*.context_block.attn.qkv transformer_blocks.*.attn.add_q_proj ~attn.add_k_proj ~attn.add_v_proj
    joint_blocks.*.context_block.attn.ln_q transformer_blocks.*.attn.norm_added_q
    joint_blocks.*.context_block.attn.ln_k transformer_blocks.*.attn.norm_added_k
    joint_blocks.*.context_block.attn.proj transformer_blocks.*.attn.to_add_out
    joint_blocks.*.context_block.mlp.fc1 transformer_blocks.*.ff_context.net.0.proj
    joint_blocks.*.context_block.mlp.fc2 transformer_blocks.*.ff_context.net.2
    final_layer.linear proj_out
    final_layer.adaLN_modulation.1 norm_out.linear
""")

_FLUX = _table("""
    img_in x_embedder
    txt_in context_embedder
    time_in.in_layer time_text_embed.timestep_embedder.linear_1
    time_in.out_layer time_text_embed.timestep_embedder.linear_2
    vector_in.in_layer time_text_embed.text_embedder.linear_1
    vector_in.out_layer time_text_embed.text_embedder.linear_2
    guidance_in.in_layer time_text_embed.guidance_embedder.linear_1
    guidance_in.out_layer time_text_embed.guidance_embedder.linear_2
    double_blocks.*.img_mod.lin transformer_blocks.*.norm1.linear
    double_blocks.*.txt_mod.lin transformer_blocks.*.norm1_context.linear
    double_blocks.*.img_attn.qkv transformer_blocks.*.attn.to_q ~attn.to_k ~attn.to_v
    double_blocks.*.txt_attn.qkv transformer_blocks.*.attn.add_q_proj ~attn.add_k_proj ~attn.add_v_proj
    double_blocks.*.img_attn.norm.query_norm.scale transformer_blocks.*.attn.norm_q.weight
    double_blocks.*.img_attn.norm.key_norm.scale transformer_blocks.*.attn.norm_k.weight
    double_blocks.*.txt_attn.norm.query_norm.scale transformer_blocks.*.attn.norm_added_q.weight
    double_blocks.*.txt_attn.norm.key_norm.scale transformer_blocks.*.attn.norm_added_k.weight
    double_blocks.*.img_attn.proj transformer_blocks.*.attn.to_out.0
    double_blocks.*.txt_attn.proj transformer_blocks.*.attn.to_add_out
    double_blocks.*.img_mlp.0 transformer_blocks.*.ff.net.0.proj
    double_blocks.*.img_mlp.2 transformer_blocks.*.ff.net.2
    double_blocks.*.txt_mlp.0 transformer_blocks.*.ff_context.net.0.proj
    double_blocks.*.txt_mlp.2 transformer_blocks.*.ff_context.net.2
    single_blocks.*.modulation.lin single_transformer_blocks.*.norm.linear
    single_blocks.*.linear1 single_transformer_blocks.*.attn.to_q ~attn.to_k ~attn.to_v ~proj_mlp:4
    single_blocks.*.linear2 single_transformer_blocks.*.proj_out
    single_blocks.*.norm.query_norm.scale single_transformer_blocks.*.attn.norm_q.weight
    single_blocks.*.norm.key_norm.scale single_transformer_blocks.*.attn.norm_k.weight
    final_layer.linear proj_out
    final_layer.adaLN_modulation.1 norm_out.linear
""")

_CONVERTERS: dict[str, Callable[[Tensors, Mapping[str, Any]], Converted]] = {
    "unet": _unet,
    "vae": _vae,
    "open_clip": _open_clip,
    "open_clip_of_sd2": _open_clip_of_sd2,
    "clip_of_sd3": _clip_of_sd3,
    "sd3": _sd3,
    "flux": _flux,
}
