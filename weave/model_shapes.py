"""The sizes that the components of a model share: what one gives must be what the other takes.

Standard library only: the command line checks with it too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from weave.model_configs import shown
from weave.model_files import ModelFilesRefused

Configs = Mapping[str, Mapping[str, Any]]
Sizes = Callable[["Configs"], Iterator["Expected"]]

# What the classes take for the keys below where a config lacks them.
DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
    "AutoencoderKL": {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [64]},
    "SD3Transformer2DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "attention_head_dim": 64,
        "num_attention_heads": 18,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1152,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 96,
    },
    "FluxTransformer2DModel": {
        "in_channels": 64,
        "out_channels": None,
        "patch_size": 1,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
    },
    "CLIPTextModel": {"hidden_size": 512, "projection_dim": 512},
    "CLIPTextModelWithProjection": {"hidden_size": 512, "projection_dim": 512},
    "T5EncoderModel": {"d_model": 512},
}


class Expected(NamedTuple):
    """`part`'s config must have `value` for `key`; `source` says where that comes from."""

    part: str
    key: str
    value: Any
    source: str


def _vae(configs: Configs, *, smallest_step: int) -> Iterator[Expected]:
    """`smallest_step`: what the family's widths and heights are multiples of, after the packing of latents."""
    yield Expected("vae", "in_channels", 3, "red, green, blue")
    yield Expected("vae", "out_channels", 3, "red, green, blue")
    blocks = configs["vae"]["block_out_channels"]
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= smallest_step.bit_length():
        most = smallest_step.bit_length()
        raise ModelFilesRefused(f"vae/config.json: block_out_channels is {shown(blocks)}, expected 1 to {most} blocks")


def _unet(configs: Configs) -> Iterator[Expected]:
    yield from _vae(configs, smallest_step=8)
    latents = configs["vae"]["latent_channels"]
    yield Expected("unet", "in_channels", latents, "the VAE's latent_channels")
    yield Expected("unet", "out_channels", latents, "the VAE's latent_channels")
    for key in ("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds"):
        yield Expected("unet", key, None, "this family has none")


def one_encoder(other_family: str, other_width: int) -> Callable[[Configs], Iterator[Expected]]:
    """sd1 and sd2 have the same classes; the width of their real text encoders, 768 and 1024, tells them apart."""

    def sizes(configs: Configs) -> Iterator[Expected]:
        width = configs["text_encoder"]["hidden_size"]
        yield Expected("unet", "cross_attention_dim", width, "the text encoder's hidden_size")
        yield Expected("unet", "addition_embed_type", None, "this family has none")
        yield from _unet(configs)
        if width == other_width:
            raise ModelFilesRefused(f"text_encoder/config.json: hidden_size is {width}, as in family {other_family}")

    return sizes


def sdxl(configs: Configs) -> Iterator[Expected]:
    """The UNet takes both encoders' words side by side, and the second's summary with the picture's sizes."""
    first, second = configs["text_encoder"], configs["text_encoder_2"]
    yield Expected("unet", "addition_embed_type", "text_time", "of this family")
    width = _sum(first["hidden_size"], second["hidden_size"])
    yield Expected("unet", "cross_attention_dim", width, "the text encoders' hidden_size together")
    times = configs["unet"]["addition_time_embed_dim"]
    embedded = _sum(*[times] * 6, second["projection_dim"])
    key = "projection_class_embeddings_input_dim"
    yield Expected("unet", key, embedded, "6 addition_time_embed_dim and text_encoder_2's projection_dim")
    yield from _unet(configs)


def sd3(configs: Configs) -> Iterator[Expected]:
    """The transformer takes the CLIP encoders' words, T5's, and the CLIP encoders' summaries."""
    transformer, vae = configs["transformer"], configs["vae"]
    clips = [configs["text_encoder"], configs["text_encoder_2"]]
    yield from _vae(configs, smallest_step=8)
    for key in ("in_channels", "out_channels"):
        yield Expected("transformer", key, vae["latent_channels"], "the VAE's latent_channels")
    pooled = _sum(*(clip["projection_dim"] for clip in clips))
    yield Expected("transformer", "pooled_projection_dim", pooled, "the CLIP encoders' projection_dim together")
    inner = _product(transformer["num_attention_heads"], transformer["attention_head_dim"])
    yield Expected("transformer", "caption_projection_dim", inner, "num_attention_heads times attention_head_dim")
    if "text_encoder_3" in configs:
        width = configs["text_encoder_3"]["d_model"]
        yield Expected("transformer", "joint_attention_dim", width, "text_encoder_3's d_model")
    # The CLIP encoders' words are filled up to T5's width.
    widths = _sum(*(clip["hidden_size"] for clip in clips))
    joint = transformer["joint_attention_dim"]
    if not isinstance(joint, int) or not isinstance(widths, int) or widths > joint:
        told = f"transformer/config.json: joint_attention_dim is {shown(joint)}, expected at least {shown(widths)}"
        raise ModelFilesRefused(f"{told} (the CLIP encoders' hidden_size together)")
    if transformer["patch_size"] not in (1, 2):
        raise ModelFilesRefused(f"transformer/config.json: patch_size is {shown(transformer['patch_size'])}, not 1, 2")
    # The table of positions is computed before the file's replaces it: 8 bytes an element.
    side = transformer["pos_embed_max_size"] or 0
    if not isinstance(side, int) or not isinstance(inner, int) or side * side * inner > 1 << 29:
        raise ModelFilesRefused(f"transformer/config.json: pos_embed_max_size is {shown(side)}, too large")


def flux(configs: Configs) -> Iterator[Expected]:
    """The transformer takes T5's words and CLIP's summary, and four latents as one."""
    transformer = configs["transformer"]
    yield from _vae(configs, smallest_step=8)
    packed = _product(4, configs["vae"]["latent_channels"])
    yield Expected("transformer", "in_channels", packed, "4 times the VAE's latent_channels")
    if transformer["out_channels"] is not None:
        yield Expected("transformer", "out_channels", packed, "4 times the VAE's latent_channels")
    yield Expected("transformer", "patch_size", 1, "of this family")
    pooled = configs["text_encoder"]["hidden_size"]
    yield Expected("transformer", "pooled_projection_dim", pooled, "the text encoder's hidden_size")
    width = configs["text_encoder_2"]["d_model"]
    yield Expected("transformer", "joint_attention_dim", width, "text_encoder_2's d_model")
    axes = transformer["axes_dims_rope"]
    turned = _sum(*axes) if isinstance(axes, list) and len(axes) == 3 else None
    yield Expected("transformer", "attention_head_dim", turned, "the sum of the three axes_dims_rope")


def _sum(*sizes: Any) -> int | None:
    return sum(sizes) if all(isinstance(size, int) for size in sizes) else None


def _product(first: Any, second: Any) -> int | None:
    return first * second if isinstance(first, int) and isinstance(second, int) else None
