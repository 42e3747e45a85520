"""Folders that are almost a model of a family: each mismatch is refused, with the value that was expected."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.published import PUBLISHED, write
from weave.models.faults import refuse_first
from weave.models.files import ModelFilesRefused
from weave.models.layouts import layout_checks

SD1, SD2, SDXL, SD3, FLUX, CHROMA, Z_IMAGE, KLEIN, QWEN, KREA2 = (
    PUBLISHED[name][1]
    for name in (
        *("Stable Diffusion 1.5", "Stable Diffusion 2.1", "SDXL", "SD 3.5", "FLUX.1-dev", "Chroma1-HD"),
        *("Z-Image-Turbo", "FLUX.2-klein-4B", "Qwen-Image", "Krea-2-Turbo"),
    )
)
UNET, VAE, CLIP, CLIP_2, T5, FLOW = (
    "unet/config.json", "vae/config.json", "text_encoder/config.json", "text_encoder_2/config.json",
    "text_encoder_3/config.json", "transformer/config.json",
)  # fmt: skip
SCHEDULER, EDM = "scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}
MISFITS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str]] = {
    "inpainting": ("sd1", SD1, UNET, {"in_channels": 9}, "unet/config.json: in_channels is 9, expected 4"),
    "depth": ("sd2", SD2, UNET, {"in_channels": 5}, "in_channels is 5, expected 4"),
    "upscaler": ("sd2", SD2, UNET, {"num_class_embeds": 1000}, "num_class_embeds is 1000, expected None"),
    "unclip": ("sd2", SD2, UNET, {"class_embed_type": "projection"}, "class_embed_type is 'projection', expected None"),
    "variance": ("sd1", SD1, UNET, {"out_channels": 8}, "out_channels is 8, expected 4"),
    "other encoder": ("sd1", SD1, UNET, {"cross_attention_dim": 384}, "cross_attention_dim is 384, expected 768"),
    "one of many": ("sd1", SD1, UNET, {"cross_attention_dim": [768, 768, 9, 768]}, r"cross_attention_dim is \[768"),
    "other VAE": ("sd1", SD1, VAE, {"latent_channels": 16}, "in_channels is 4, expected 16"),
    "VAE of 5 levels": ("sd1", SD1, VAE, {"block_out_channels": [32] * 5}, "expected 1 to 4 blocks"),
    "grey": ("sd1", SD1, VAE, {"out_channels": 1}, "vae/config.json: out_channels is 1, expected 3"),
    "sd2's encoder": ("sd1", SD1 | {UNET: SD2[UNET]}, CLIP, {"hidden_size": 1024}, "1024, as in family sd2"),
    "sd1's encoder": ("sd2", SD2 | {UNET: SD1[UNET]}, CLIP, {"hidden_size": 768}, "768, as in family sd1"),
    "xl": ("sdxl", SDXL, CLIP_2, {"hidden_size": 1024}, "cross_attention_dim is 2048, expected 1792"),
    "xl, pooled": ("sdxl", SDXL, CLIP_2, {"projection_dim": 768}, "input_dim is 2816, expected 2304"),
    "xl, mean": ("sdxl", SDXL, VAE, {"latents_mean": [0.0] * 3}, "latents_mean has 3 values, expected 4"),
    "xl, deviation": ("sdxl", SDXL, VAE, {"latents_std": [1, 1, 1, 0]}, "latents_std is .*, expected a number from"),
    "xl, noise": ("sdxl", SDXL, SCHEDULER, {**EDM, "sigma_min": 90}, "sigma_min is 90 and sigma_max 80.0, expected"),
    "xl, no noise": ("sdxl", SDXL, SCHEDULER, {**EDM, "sigma_max": None}, "sigma_max None, expected two numbers"),
    "xl, least noise": ("sdxl", SDXL, SCHEDULER, {**EDM, "sigma_min": 0}, "sigma_min is 0, expected a number from 1e"),
    "xl, spacing": ("sdxl", SDXL, SCHEDULER, {**EDM, "sigma_schedule": "beta"}, "'beta', expected 'karras' or 'exp"),
    "xl, prediction": ("sdxl", SDXL, SCHEDULER, {**EDM, "prediction_type": "sample"}, "EDMEulerScheduler does not"),
    "xl, times": ("sdxl", SDXL, UNET, {"addition_embed_type": None}, "is None, expected 'text_time'"),
    "sd3": ("sd3", SD3, FLOW, {"in_channels": 4}, "in_channels is 4, expected 16"),
    "sd3, pooled": ("sd3", SD3, FLOW, {"pooled_projection_dim": 768}, "is 768, expected 2048"),
    "sd3, T5": ("sd3", SD3, T5, {"d_model": 2048}, "joint_attention_dim is 4096, expected 2048"),
    "sd3, CLIP": ("sd3", SD3, CLIP, {"hidden_size": 3000}, "joint_attention_dim is 4096, expected at least 4280"),
    "sd3, heads": ("sd3", SD3, FLOW, {"num_attention_heads": 24}, "caption_projection_dim is 2432, expected 1536"),
    "sd3, positions": ("sd3", SD3, FLOW, {"pos_embed_max_size": 1000}, "pos_embed_max_size is 1000, too large"),
    "sd3, patches": ("sd3", SD3, FLOW, {"patch_size": 4}, "patch_size is 4"),
    "flux, fill": ("flux", FLUX, FLOW, {"in_channels": 384, "out_channels": 64}, "in_channels is 384, expected 64"),
    "flux, CLIP": ("flux", FLUX, CLIP, {"hidden_size": 1280}, "pooled_projection_dim is 768, expected 1280"),
    "flux, T5": ("flux", FLUX, CLIP_2, {"d_model": 2048}, "joint_attention_dim is 4096, expected 2048"),
    "flux, axes": ("flux", FLUX, FLOW, {"axes_dims_rope": [8, 8, 8]}, "attention_head_dim is 128, expected 24"),
    "chroma, T5": ("chroma", CHROMA, CLIP, {"d_model": 2048}, "joint_attention_dim is 4096, expected 2048"),
    "chroma, guidance": (
        "chroma", CHROMA, FLOW, {"approximator_num_channels": 63}, "is 63, expected 60 .a multiple of 4"
    ),
    "z-image, encoder": ("z-image", Z_IMAGE, CLIP, {"hidden_size": 4096}, "cap_feat_dim is 2560, expected 4096"),
    "z-image, layers": ("z-image", Z_IMAGE, CLIP, {"num_hidden_layers": 0}, "num_hidden_layers is 0, expected at lea"),
    "z-image, positions": (
        "z-image", Z_IMAGE, FLOW, {"axes_lens": [512, 512, 512]}, "axes_lens is 512, expected from 545 to 65536"
    ),
    "z-image, axes": ("z-image", Z_IMAGE, FLOW, {"axes_dims": [64, 64]}, "dim is 3840, expected None .n_heads times"),
    "z-image, heads": ("z-image", Z_IMAGE, FLOW, {"n_heads": 31}, "dim is 3840, expected 3968"),
    "z-image, omni": ("z-image", Z_IMAGE, FLOW, {"siglip_feat_dim": 1152}, "siglip_feat_dim is 1152, expected None"),
    "z-image, rotations": (
        "z-image", Z_IMAGE, CLIP, {"rope_scaling": {"rope_type": "dynamic", "factor": 2}},
        "config.json: rope_scaling: rope_type is 'dynamic', expected 'default', 'mrope' or 'axial'",
    ),
    "z-image, rotations by name": ("z-image", Z_IMAGE, CLIP, {"rope_scaling": "yarn"}, "rope_scaling is 'yarn', exp"),
    "klein, encoder": ("flux2-klein", KLEIN, CLIP, {"hidden_size": 4096}, "attention_dim is 7680, expected 12288"),
    "klein, layers": ("flux2-klein", KLEIN, CLIP, {"num_hidden_layers": 26}, "layers is 26, expected at least 27"),
    "klein, axes": ("flux2-klein", KLEIN, FLOW, {"axes_dims_rope": [16, 56, 56]}, "head_dim is 128, expected None"),
    "klein, VAE": ("flux2-klein", KLEIN, VAE, {"latent_channels": 16}, "in_channels is 128, expected 64"),
    "klein, patches": ("flux2-klein", KLEIN, VAE, {"patch_size": [1, 1]}, r"patch_size is \[1, 1\], expected 2"),
    "klein, setting": ("flux2-klein", KLEIN, "model_index.json", {"is_distilled": 4}, "is_distilled is 4, expected tr"),
    "qwen, encoder": ("qwen-image", QWEN, FLOW, {"joint_attention_dim": 4096}, "is 4096, expected 3584"),
    "qwen, no encoder": ("qwen-image", QWEN, CLIP, {"text_config": None}, "text_config has no hidden_size"),
    "qwen, VAE": ("qwen-image", QWEN, FLOW, {"out_channels": 64}, "out_channels is 64, expected 16"),
    "qwen, VAE's levels": ("qwen-image", QWEN, VAE, {"dim_mult": [1, 2]}, "dim_mult has 2 values, expected 4"),
    "qwen, VAE's mean": ("qwen-image", QWEN, VAE, {"latents_mean": [0.0]}, "latents_mean has 1 values, expected 16"),
    "qwen, layers of images": ("qwen-image", QWEN, FLOW, {"use_layer3d_rope": True}, "rope is True, expected False"),
    "qwen, rotations": (
        "qwen-image", QWEN, CLIP, {"text_config": QWEN[CLIP]["text_config"] | {"hidden_size": 3640}},
        "joint_attention_dim is 3584, expected 3640",
    ),
    "qwen, sections": (
        "qwen-image", QWEN, CLIP, {"text_config": QWEN[CLIP]["text_config"] | {"num_attention_heads": 14}},
        r"text_config: mrope_section is \[16, 24, 24\], expected three numbers whose sum is 128, half a head",
    ),
    "qwen, inner key": (
        "qwen-image", QWEN, CLIP, {"text_config": QWEN[CLIP]["text_config"] | {"auto_map": {}}},
        "config.json: text_config: 'auto_map' is not a known key; remove it",
    ),
    "krea2, layers": (
        "krea2", KREA2, "model_index.json", {"text_encoder_select_layers": [1] * 11 + [40]},
        "num_hidden_layers is 36, expected at least 40",
    ),
    "krea2, taps": (
        "krea2", KREA2, "model_index.json", {"text_encoder_select_layers": [2]}, "num_text_layers is 12, expected 1"
    ),
    "krea2, patches": ("krea2", KREA2, "model_index.json", {"patch_size": 1}, "patch_size is 1, expected 2"),
    "krea2, encoder": ("krea2", KREA2, FLOW, {"text_hidden_dim": 4096}, "text_hidden_dim is 4096, expected 2560"),
    "VAE's class": ("sd1", SD1, VAE, {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny', expected AutoencoderKL"),
    "encoder's class": ("sd1", SD1, CLIP, {"architectures": ["CLIPModel"]}, "'CLIPModel', expected CLIPTextModel"),
    "class of no kind": ("sd1", SD1, VAE, {"_class_name": {"a": 1}}, "expected AutoencoderKL"),
    "scheduler": (
        "flux", FLUX, SCHEDULER, {"_class_name": "DDIMScheduler"}, "is 'DDIMScheduler'"
    ),
    "pipeline": ("sd1", SD1, "model_index.json", {"_class_name": "StableDiffusionGLIGENPipeline"}, "GLIGENPipeline"),
    "component": ("sd1", SD1, "model_index.json", {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "Asymmetric"),
    "setting": ("sdxl", SDXL, "model_index.json", {"force_zeros_for_empty_prompt": "no"}, "is 'no', expected true"),
    "tokenizer": (
        "sd1", SD1, "tokenizer/tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "is 'BertTokenizer'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_mismatch_is_refused_with_the_expected_value(tmp_path: Path, name: str) -> None:
    family, files, changed, change, told = MISFITS[name]
    with pytest.raises(ModelFilesRefused, match=told):
        refuse_first(layout_checks(family, write(files | {changed: files[changed] | change}, tmp_path)))
