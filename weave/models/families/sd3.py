"""Stable Diffusion 3 and 3.5: a transformer, two CLIP encoders, and T5 where the model has it."""

from collections.abc import Iterator

from weave.models import sizes
from weave.models.components import (
    AUTOENCODER_KL,
    BY_DIFFUSERS,
    CLIP_TEXT_WITH_PROJECTION,
    CLIP_TOKENIZER,
    T5_ENCODER,
    T5_TOKENIZER,
    ModelClass,
)
from weave.models.configs import rules, shown
from weave.models.family import Family, bounds, defaults
from weave.models.files import ModelFilesRefused
from weave.models.schedulers import FLOW
from weave.models.sizes import Configs, Expected, product, total

_LARGEST_TABLE = 1 << 29  # elements

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="SD3Transformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="sample_size pos_embed_max_size patch_size",
        size="""in_channels out_channels attention_head_dim num_attention_heads joint_attention_dim
            caption_projection_dim pooled_projection_dim""",
        count="num_layers dual_attention_layers",
        name="qk_norm",
    ),
    defaults={
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
)


def _sizes(configs: Configs) -> Iterator[Expected]:
    """The transformer takes the CLIP encoders' words, T5's, and the CLIP encoders' summaries."""
    transformer = configs["transformer"]
    clips = [configs["text_encoder"], configs["text_encoder_2"]]
    yield from sizes.vae(configs)
    for key in ("in_channels", "out_channels"):
        yield Expected("transformer", key, configs["vae"]["latent_channels"], "the VAE's latent_channels")
    pooled = total(*(clip["projection_dim"] for clip in clips))
    yield Expected("transformer", "pooled_projection_dim", pooled, "the CLIP encoders' projection_dim together")
    inner = product(transformer["num_attention_heads"], transformer["attention_head_dim"])
    yield Expected("transformer", "caption_projection_dim", inner, "num_attention_heads times attention_head_dim")
    if "text_encoder_3" in configs:
        width = configs["text_encoder_3"]["d_model"]
        yield Expected("transformer", "joint_attention_dim", width, "text_encoder_3's d_model")
    # The CLIP encoders' words are filled up to T5's width.
    widths = total(*(clip["hidden_size"] for clip in clips))
    joint = transformer["joint_attention_dim"]
    if not isinstance(joint, int) or not isinstance(widths, int) or widths > joint:
        told = f"transformer/config.json: joint_attention_dim is {shown(joint)}, expected at least {shown(widths)}"
        raise ModelFilesRefused(f"{told} (the CLIP encoders' hidden_size together)")
    if transformer["patch_size"] not in (1, 2):
        raise ModelFilesRefused(f"transformer/config.json: patch_size is {shown(transformer['patch_size'])}, not 1, 2")
    # The table of positions is computed before the file's replaces it: 8 bytes an element.
    side = transformer["pos_embed_max_size"] or 0
    if not isinstance(side, int) or not isinstance(inner, int) or side * side * inner > _LARGEST_TABLE:
        raise ModelFilesRefused(f"transformer/config.json: pos_embed_max_size is {shown(side)}, too large")


FAMILIES = (
    Family(
        name="sd3",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000),
        defaults=defaults(side=1024, steps=28, cfg_scale=4.5, scheduler="flow_euler"),
        schedulers=FLOW,
        pipeline="StableDiffusion3Pipeline",
        sibling_pipelines=("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
        components={
            "tokenizer": CLIP_TOKENIZER,
            "tokenizer_2": CLIP_TOKENIZER,
            "tokenizer_3": T5_TOKENIZER,
            "text_encoder": CLIP_TEXT_WITH_PROJECTION,
            "text_encoder_2": CLIP_TEXT_WITH_PROJECTION,
            "text_encoder_3": T5_ENCODER,
            "transformer": _TRANSFORMER,
            "vae": AUTOENCODER_KL,
        },
        optional=frozenset({"tokenizer_3", "text_encoder_3"}),
        sizes=_sizes,
        t5_tokens=256,
        adapter="sd3",
    ),
)
