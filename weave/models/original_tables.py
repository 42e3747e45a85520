"""The modules of transformers in the code of their authors, and in diffusers.

Where the authors have one layer for several of diffusers (attention's q, k and v), its rows are theirs, one below the
other.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from msgspec import Struct

# The number of a block: the first one within a name.
BLOCK = re.compile(r"\.(\d+)\.")


class Table(Struct, frozen=True):
    """By the authors' module, its modules in diffusers with their shares of its rows, none if diffusers does not have
    it; `*` is a block's number. Of the modules that `swapped` finds for a model's config, the halves, shift and scale,
    change places in diffusers."""

    modules: Mapping[str, Mapping[str, int]]
    swapped: Callable[[Mapping[str, Any]], Collection[str]]


def _table(swapped: Callable[[Mapping[str, Any]], Collection[str]], text: str) -> Table:
    """A line has a module of the authors, then its modules in diffusers, `=` where the name is the same. `~NAME` is in
    the block of the first of them, `NAME:4` has four times the rows of the others."""
    modules: dict[str, dict[str, int]] = {}
    for line in text.strip().splitlines():
        original, *parts = line.split()
        block = " ".join(parts).partition("*")[0] + "*."
        shares = (part.replace("~", block).replace("=", original).partition(":") for part in parts)
        modules[original] = {part: int(share or 1) for part, _, share in shares}
    return Table(modules, swapped)


def _in_each(blocks: Mapping[str, str], lines: str) -> str:
    """Lines of a table for the blocks of each name, with OLD and NEW for the authors' name and that in diffusers."""
    return "".join(lines.replace("OLD", f"{old}.*").replace("NEW", f"{new}.*") for old, new in blocks.items())


_LAST = "final_layer.adaLN_modulation.1"


def _swaps_nothing(config: Mapping[str, Any]) -> Collection[str]:
    return ()


def _swaps_last(config: Mapping[str, Any]) -> Collection[str]:
    return {_LAST}


def _swapped_in_sd3(config: Mapping[str, Any]) -> Collection[str]:
    return {_LAST, f"joint_blocks.{config['num_layers'] - 1}.context_block.adaLN_modulation.1"}


SD3 = _table(
    _swapped_in_sd3,
    """
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
""",
)

# Chroma's too: it has the distilled_guidance_layer in place of all modulations.
FLUX = _table(
    _swaps_last,
    """
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
    distilled_guidance_layer.in_proj =
    distilled_guidance_layer.out_proj =
    distilled_guidance_layer.layers.*.in_layer distilled_guidance_layer.layers.*.linear_1
    distilled_guidance_layer.layers.*.out_layer distilled_guidance_layer.layers.*.linear_2
    distilled_guidance_layer.norms.*.scale distilled_guidance_layer.norms.*.weight
""",
)

FLUX2 = _table(
    _swaps_last,
    """
    img_in x_embedder
    txt_in context_embedder
    time_in.in_layer time_guidance_embed.timestep_embedder.linear_1
    time_in.out_layer time_guidance_embed.timestep_embedder.linear_2
    double_stream_modulation_img.lin double_stream_modulation_img.linear
    double_stream_modulation_txt.lin double_stream_modulation_txt.linear
    single_stream_modulation.lin single_stream_modulation.linear
    double_blocks.*.img_attn.qkv transformer_blocks.*.attn.to_q ~attn.to_k ~attn.to_v
    double_blocks.*.txt_attn.qkv transformer_blocks.*.attn.add_q_proj ~attn.add_k_proj ~attn.add_v_proj
    double_blocks.*.img_attn.norm.query_norm.scale transformer_blocks.*.attn.norm_q.weight
    double_blocks.*.img_attn.norm.key_norm.scale transformer_blocks.*.attn.norm_k.weight
    double_blocks.*.txt_attn.norm.query_norm.scale transformer_blocks.*.attn.norm_added_q.weight
    double_blocks.*.txt_attn.norm.key_norm.scale transformer_blocks.*.attn.norm_added_k.weight
    double_blocks.*.img_attn.proj transformer_blocks.*.attn.to_out.0
    double_blocks.*.txt_attn.proj transformer_blocks.*.attn.to_add_out
    double_blocks.*.img_mlp.0 transformer_blocks.*.ff.linear_in
    double_blocks.*.img_mlp.2 transformer_blocks.*.ff.linear_out
    double_blocks.*.txt_mlp.0 transformer_blocks.*.ff_context.linear_in
    double_blocks.*.txt_mlp.2 transformer_blocks.*.ff_context.linear_out
    single_blocks.*.linear1 single_transformer_blocks.*.attn.to_qkv_mlp_proj
    single_blocks.*.linear2 single_transformer_blocks.*.attn.to_out
    single_blocks.*.norm.query_norm.scale single_transformer_blocks.*.attn.norm_q.weight
    single_blocks.*.norm.key_norm.scale single_transformer_blocks.*.attn.norm_k.weight
    final_layer.linear proj_out
    final_layer.adaLN_modulation.1 norm_out.linear
""",
)

Z_IMAGE = _table(
    _swaps_nothing,
    """
    x_embedder all_x_embedder.2-1
    t_embedder.mlp.0 =
    t_embedder.mlp.2 =
    cap_embedder.0 =
    cap_embedder.1 =
    x_pad_token =
    cap_pad_token =
    final_layer.linear all_final_layer.2-1.linear
    final_layer.adaLN_modulation.1 all_final_layer.2-1.adaLN_modulation.1
    norm_final
"""
    + _in_each(
        {name: name for name in ("layers", "noise_refiner", "context_refiner")},
        """\
    OLD.attention.qkv NEW.attention.to_q ~attention.to_k ~attention.to_v
    OLD.attention.q_norm NEW.attention.norm_q
    OLD.attention.k_norm NEW.attention.norm_k
    OLD.attention.out NEW.attention.to_out.0
    OLD.attention_norm1 =
    OLD.attention_norm2 =
    OLD.ffn_norm1 =
    OLD.ffn_norm2 =
    OLD.feed_forward.w1 =
    OLD.feed_forward.w2 =
    OLD.feed_forward.w3 =
    OLD.adaLN_modulation.0 =
""",
    ),
)

KREA2 = _table(
    _swaps_nothing,
    """
    first img_in
    tmlp.0 time_embed.linear_1
    tmlp.2 time_embed.linear_2
    tproj.1 time_mod_proj
    txtmlp.0.scale txt_in.norm.weight
    txtmlp.1 txt_in.linear_1
    txtmlp.3 txt_in.linear_2
    txtfusion.projector text_fusion.projector
    last.linear final_layer.linear
    last.norm.scale final_layer.norm.weight
    last.modulation.lin final_layer.scale_shift_table
    blocks.*.mod.lin transformer_blocks.*.scale_shift_table
"""
    + _in_each(
        {
            "blocks": "transformer_blocks",
            "txtfusion.layerwise_blocks": "text_fusion.layerwise_blocks",
            "txtfusion.refiner_blocks": "text_fusion.refiner_blocks",
        },
        """\
    OLD.attn.wq NEW.attn.to_q
    OLD.attn.wk NEW.attn.to_k
    OLD.attn.wv NEW.attn.to_v
    OLD.attn.wo NEW.attn.to_out.0
    OLD.attn.gate NEW.attn.to_gate
    OLD.attn.qknorm.qnorm.scale NEW.attn.norm_q.weight
    OLD.attn.qknorm.knorm.scale NEW.attn.norm_k.weight
    OLD.mlp.gate NEW.ff.gate
    OLD.mlp.up NEW.ff.up
    OLD.mlp.down NEW.ff.down
    OLD.prenorm.scale NEW.norm1.weight
    OLD.postnorm.scale NEW.norm2.weight
""",
    ),
)
