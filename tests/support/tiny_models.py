"""A tiny model of each family: the real classes, randomly initialised, saved as a user's model would be."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.support.daemon import DEMO_MODEL

_TOKENS = 32


def make(family: str, folder: Path) -> Path:
    """Write the model into `folder`; returns it."""
    torch.manual_seed(0)
    if family in ("sd1", "sd2"):
        return Path(shutil.copytree(DEMO_MODEL, folder))
    parts = {"sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "chroma": _chroma}[family]()
    for name, part in parts.items():
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
    parts = {
        "tokenizer": _clip_tokenizer(),
        "text_encoder": transformers.CLIPTextModel(_clip_config()),
        "unet": small_unet(32),
        "vae": _vae(4),
        "scheduler": diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


def _sdxl() -> dict[str, Any]:
    return {
        "tokenizer": _clip_tokenizer(),
        "tokenizer_2": _clip_tokenizer(),
        "text_encoder": transformers.CLIPTextModel(_clip_config()),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(_clip_config()),
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
        "vae": _vae(4),
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    }


def _sd3() -> dict[str, Any]:
    return {
        "tokenizer": _clip_tokenizer(),
        "tokenizer_2": _clip_tokenizer(),
        "tokenizer_3": _t5_tokenizer(),
        "text_encoder": transformers.CLIPTextModelWithProjection(_clip_config()),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(_clip_config()),
        "text_encoder_3": transformers.T5EncoderModel(_t5_config(64)),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
        ),
        "vae": _vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux() -> dict[str, Any]:
    return {
        "tokenizer": _clip_tokenizer(),
        "tokenizer_2": _t5_tokenizer(),
        "text_encoder": transformers.CLIPTextModel(_clip_config()),
        "text_encoder_2": transformers.T5EncoderModel(_t5_config(32)),
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
        "vae": _vae(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _chroma() -> dict[str, Any]:
    """Of tests/support/chroma."""
    return {
        "tokenizer": _t5_tokenizer(),
        "text_encoder": transformers.T5EncoderModel(_t5_config(32)),
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
        "vae": _vae(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _vae(latent_channels: int, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def _clip_tokenizer() -> Any:
    return transformers.CLIPTokenizer.from_pretrained(str(DEMO_MODEL / "tokenizer"))


def _clip_config() -> Any:
    tokenizer = _clip_tokenizer()
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    return transformers.T5TokenizerFast(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=_TOKENS)


def _t5_config(width: int) -> Any:
    return transformers.T5Config(
        vocab_size=64, d_model=width, d_ff=37, d_kv=8, num_layers=1, num_heads=4, relative_attention_num_buckets=8
    )
