"""A tiny model of each family: the real classes, randomly initialised, saved as a user's model would be."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.support import tiny_parts as parts
from tests.support.daemon import DEMO_MODEL


def make(family: str, folder: Path) -> Path:
    """Write the model into `folder`; returns it."""
    torch.manual_seed(0)
    if family in ("sd1", "sd2"):
        return Path(shutil.copytree(DEMO_MODEL, folder))
    make_parts: dict[str, Callable[[], dict[str, Any]]] = {
        "sdxl": _sdxl,
        "sd3": _sd3,
        "flux": _flux,
        "chroma": _chroma,
        "z-image": _z_image,
        "flux2-klein": _flux2_klein,
        "qwen-image": _qwen_image,
        "qwen-image-edit": _qwen_image_edit,
        "qwen-image-edit-plus": partial(_qwen_image_edit, zero_cond_t=True),
        "krea2": _krea2,
        "bria": _bria,
    }
    for name, part in make_parts[family]().items():
        part.save_pretrained(folder / name)
    return folder


def small_unet(width: int) -> Any:
    """sd1's, for a text encoder of this width."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=width,
        norm_num_groups=8,
    )


def make_small_sd(folder: Path) -> Path:
    """A model of sd1's family that takes a tenth of the demo model's time. Its images show nothing."""
    torch.manual_seed(0)
    components = {
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder": transformers.CLIPTextModel(parts.clip_config()),
        "unet": small_unet(32),
        "vae": parts.vae(4),
        "scheduler": diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
    }
    for name, part in components.items():
        part.save_pretrained(folder / name)
    return folder


def _sdxl() -> dict[str, Any]:
    return {
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.clip_tokenizer(),
        "text_encoder": transformers.CLIPTextModel(parts.clip_config()),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(parts.clip_config()),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 8 + 32,
            cross_attention_dim=64,
            norm_num_groups=8,
        ),
        "vae": parts.vae(4),
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    }


def _sd3() -> dict[str, Any]:
    return {
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.clip_tokenizer(),
        "tokenizer_3": parts.t5_tokenizer(),
        "text_encoder": transformers.CLIPTextModelWithProjection(parts.clip_config()),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(parts.clip_config()),
        "text_encoder_3": transformers.T5EncoderModel(parts.t5_config(64)),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=16,  # its inpainting class takes no other number
            out_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
        ),
        "vae": parts.vae(16, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux() -> dict[str, Any]:
    return {
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.t5_tokenizer(),
        "text_encoder": transformers.CLIPTextModel(parts.clip_config()),
        "text_encoder_2": transformers.T5EncoderModel(parts.t5_config(32)),
        "transformer": diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        "vae": parts.vae(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _chroma() -> dict[str, Any]:
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": transformers.T5EncoderModel(parts.t5_config(32)),
        "transformer": diffusers.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
        "vae": parts.vae(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _z_image() -> dict[str, Any]:
    return {
        "tokenizer": parts.qwen_tokenizer(),
        "text_encoder": transformers.Qwen3Model(parts.qwen3_config(layers=2)),
        "transformer": diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 4, 8],
        ),
        "vae": parts.vae(4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux2_klein() -> dict[str, Any]:
    blocks = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=2,
        sample_size=64,
        **blocks,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return {
        "tokenizer": parts.qwen_tokenizer(),
        "text_encoder": transformers.Qwen3ForCausalLM(parts.qwen3_config(layers=28)),
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 32,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        "vae": vae,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _qwen_image() -> dict[str, Any]:
    text = {
        **parts.QWEN_SIZES,
        "num_hidden_layers": 2,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    encoder = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**parts.VISION, "fullatt_block_indexes": [0], "window_size": 8},
    )
    return {
        "tokenizer": parts.qwen_tokenizer(),
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(encoder),
        "transformer": diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        "vae": parts.qwen_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
        ),
    }


def _qwen_image_edit(**options: Any) -> dict[str, Any]:
    made = _qwen_image()
    encoder, transformer = made["text_encoder"].config, made["transformer"].config
    marks = {key: encoder.text_config.vocab_size + number for number, key in enumerate(parts.MARKS)}
    encoder.update(marks)
    encoder.text_config.vocab_size += len(marks)
    return {
        **made,
        "tokenizer": parts.qwen_tokenizer(*parts.MARKS.values()),
        "processor": parts.QwenProcessor(),
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(encoder),
        "transformer": diffusers.QwenImageTransformer2DModel.from_config(transformer, **options),
        "vae": parts.qwen_vae(base_dim=1),  # it encodes each reference with 1024x1024 pixels
    }


def _krea2() -> dict[str, Any]:
    rotations = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    encoder = transformers.Qwen3VLConfig(
        text_config={**parts.QWEN_SIZES, "num_hidden_layers": 36, "head_dim": 8, "rope_scaling": rotations},
        vision_config={**parts.VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    )
    return {
        "tokenizer": parts.qwen_tokenizer(),
        "text_encoder": transformers.Qwen3VLModel(encoder),
        "transformer": diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=32,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 4, 8),
        ),
        "vae": parts.qwen_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
    }


def _bria() -> dict[str, Any]:
    """Of tests/support/bria."""
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": transformers.T5EncoderModel(parts.t5_config(32)),
        "transformer": diffusers.BriaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        "vae": parts.vae(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
