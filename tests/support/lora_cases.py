"""LoRAs of each family, in the spellings that people share."""

from typing import NamedTuple

from tests.support.loras import DIFFUSERS, ENCODERS_OF_DIFFUSERS, KOHYA, OLD_DIFFUSERS, PEFT, Spelling

BLOCK, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"
DOWN = "down_blocks.1.attentions.0.transformer_blocks.0"
CLIP, T5 = "text_model.encoder.layers", "encoder.block.0.layer"


class Case(NamedTuple):
    """`layers` are as Lora has them."""

    family: str
    spelling: Spelling
    layers: dict[str, str]


def same(prefix: str, component: str, *layers: str) -> dict[str, str]:
    """Keys that name layers as diffusers does."""
    return {f"{prefix}{layer}": f"{component} {layer}" for layer in layers}


CASES = {
    "sd1-diffusers": Case(
        "sd1", DIFFUSERS, same("unet.", "unet", f"{DOWN}.attn1.to_q", f"{DOWN}.ff.net.2", "mid_block.resnets.1.conv2")
    ),
    "sd1-diffusers-2023": Case("sd1", OLD_DIFFUSERS, {f"{DOWN}.attn1.processor.to_out": f"unet {DOWN}.attn1.to_out.0"}),
    "sd1-encoder": Case(
        "sd1",
        ENCODERS_OF_DIFFUSERS,
        {f"text_encoder.{CLIP}.0.self_attn.q_proj": "text_encoder encoder.layers.0.self_attn.q_proj"},
    ),
    "sd1-encoder-2023": Case(
        "sd1",
        OLD_DIFFUSERS,
        {f"text_encoder.{CLIP}.1.self_attn.to_out": "text_encoder encoder.layers.1.self_attn.out_proj"},
    ),
    "sd1-peft": Case("sd1", PEFT, same("base_model.model.", "unet", "conv_in", f"{DOWN}.attn2.to_v")),
    "sd1-kohya": Case(
        "sd1",
        KOHYA,
        {
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0": f"unet {DOWN}.attn2.to_out.0",
            "lora_unet_up_blocks_0_resnets_1_conv_shortcut": "unet up_blocks.0.resnets.1.conv_shortcut",
            "lora_te_text_model_encoder_layers_1_mlp_fc1": "text_encoder encoder.layers.1.mlp.fc1",
        },
    ),
    "sdxl-kohya": Case(
        "sdxl",
        KOHYA,
        {
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k": f"unet {DOWN}.attn2.to_k",
            "lora_unet_output_blocks_1_2_conv": "unet up_blocks.0.upsamplers.0.conv",
            "lora_unet_middle_block_2_in_layers_2": "unet mid_block.resnets.1.conv1",
            "lora_unet_label_emb_0_0": "unet add_embedding.linear_1",
            "lora_te1_text_model_encoder_layers_0_self_attn_v_proj": "text_encoder encoder.layers.0.self_attn.v_proj",
            "lora_te2_text_projection": "text_encoder_2 text_projection",
        },
    ),
    "sdxl-peft": Case(
        "sdxl",
        PEFT,
        same("unet.", "unet", f"{DOWN}.attn1.to_k") | same("text_encoder_2.", "text_encoder_2", f"{CLIP}.0.mlp.fc2"),
    ),
    "sd3-original": Case(
        "sd3",
        KOHYA,
        {
            "lora_unet_joint_blocks_0_x_block_attn_qkv": (
                f"transformer {BLOCK}.attn.to_q {BLOCK}.attn.to_k {BLOCK}.attn.to_v"
            ),
            "lora_unet_joint_blocks_0_x_block_mlp_fc1": f"transformer {BLOCK}.ff.net.0.proj",
            "lora_te2_text_model_encoder_layers_1_mlp_fc2": f"text_encoder_2 {CLIP}.1.mlp.fc2",
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q": f"text_encoder_3 {T5}.0.SelfAttention.q",
        },
    ),
    "sd3-peft": Case(
        "sd3",
        PEFT,
        same("transformer.", "transformer", f"{BLOCK}.attn.add_k_proj", "context_embedder")
        | same("text_encoder.", "text_encoder", f"{CLIP}.0.self_attn.k_proj"),
    ),
    "flux-kohya": Case(
        "flux",
        KOHYA,
        {
            "lora_unet_single_blocks_0_linear1": (
                f"transformer {SINGLE}.attn.to_q {SINGLE}.attn.to_k {SINGLE}.attn.to_v {SINGLE}.proj_mlp"
            ),
            "lora_unet_double_blocks_0_img_mod_lin": f"transformer {BLOCK}.norm1.linear",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoder encoder.layers.0.mlp.fc1",
            "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi": f"text_encoder_2 {T5}.1.DenseReluDense.wi",
        },
    ),
    "flux-comfy": Case(
        "flux",
        PEFT,
        {
            "diffusion_model.double_blocks.0.txt_attn.qkv": (
                f"transformer {BLOCK}.attn.add_q_proj {BLOCK}.attn.add_k_proj {BLOCK}.attn.add_v_proj"
            ),
            f"text_encoders.clip_l.transformer.{CLIP}.1.self_attn.k_proj": (
                "text_encoder encoder.layers.1.self_attn.k_proj"
            ),
        },
    ),
    "flux-peft": Case(
        "flux",
        PEFT,
        same("transformer.", "transformer", f"{BLOCK}.attn.to_out.0", f"{SINGLE}.proj_out"),
    ),
    "chroma-kohya": Case(
        "chroma",
        KOHYA,
        {
            "lora_unet_distilled_guidance_layer_layers_0_in_layer": (
                "transformer distilled_guidance_layer.layers.0.linear_1"
            ),
            "lora_unet_double_blocks_0_img_mlp_0": f"transformer {BLOCK}.ff.net.0.proj",
            "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi": f"text_encoder {T5}.1.DenseReluDense.wi",
        },
    ),
    "z-image-comfy": Case(
        "z-image",
        PEFT,
        {
            "diffusion_model.layers.0.attention.qkv": (
                "transformer layers.0.attention.to_q layers.0.attention.to_k layers.0.attention.to_v"
            ),
            "diffusion_model.noise_refiner.0.attention.out": "transformer noise_refiner.0.attention.to_out.0",
            "diffusion_model.x_embedder": "transformer all_x_embedder.2-1",
        },
    ),
    "flux2-comfy": Case(
        "flux2-klein",
        PEFT,
        {
            "diffusion_model.single_blocks.0.linear1": f"transformer {SINGLE}.attn.to_qkv_mlp_proj",
            "diffusion_model.double_blocks.0.txt_mlp.2": f"transformer {BLOCK}.ff_context.linear_out",
            "diffusion_model.double_stream_modulation_img.lin": "transformer double_stream_modulation_img.linear",
        },
    ),
    "qwen-kohya": Case(
        "qwen-image",
        KOHYA,
        {
            "lora_unet_transformer_blocks_0_img_mod_1": f"transformer {BLOCK}.img_mod.1",
            "lora_unet_transformer_blocks_0_attn_add_k_proj": f"transformer {BLOCK}.attn.add_k_proj",
        },
    ),
    "qwen-peft": Case("qwen-image", PEFT, same("transformer.", "transformer", f"{BLOCK}.txt_mlp.net.2", "txt_in")),
    "krea2-comfy": Case(
        "krea2",
        PEFT,
        {
            "diffusion_model.blocks.0.attn.wo": f"transformer {BLOCK}.attn.to_out.0",
            "diffusion_model.txtfusion.refiner_blocks.0.mlp.gate": "transformer text_fusion.refiner_blocks.0.ff.gate",
            "diffusion_model.txtmlp.1": "transformer txt_in.linear_1",
        },
    ),
}  # fmt: skip
