"""Stable Diffusion 3 and 3.5: a transformer, two CLIP encoders, and optionally T5."""

from collections.abc import Iterator
from math import isqrt
from typing import Any

from weave.models import control_nets, single_files, sizes
from weave.models.components import (
    AUTOENCODER_KL,
    BY_DIFFUSERS,
    CLIP_TEXT_WITH_PROJECTION,
    CLIP_TOKENIZER,
    T5_ENCODER,
    T5_TOKENIZER,
    ModelClass,
)
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header, ModelFilesRefused
from weave.models.original_names import by_table
from weave.models.original_tables import SD3
from weave.models.schedulers import FLOW
from weave.models.single_files import FilePart, SingleFile, of_prefix
from weave.models.sizes import Configs, Expected, in_range, total
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING

_LARGEST_TABLE = 1 << 29  # elements

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="SD3Transformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="sample_size pos_embed_max_size patch_size",
        size="""in_channels out_channels attention_head_dim num_attention_heads joint_attention_dim
            caption_projection_dim pooled_projection_dim""",
        count="num_layers dual_attention_layers[]",
        name="qk_norm?",
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


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    """The transformer takes the embeddings of CLIP and T5, and the pooled embeddings of CLIP."""
    transformer = configs["transformer"]
    clips = [configs["text_encoder"], configs["text_encoder_2"]]
    yield from sizes.vae(configs)
    for key in ("in_channels", "out_channels"):
        yield Expected("transformer", key, configs["vae"]["latent_channels"], "the VAE's latent_channels")
    pooled = total(*(clip["projection_dim"] for clip in clips))
    yield Expected("transformer", "pooled_projection_dim", pooled, "the sum of the CLIP encoders' projection_dim")
    inner = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    yield Expected("transformer", "caption_projection_dim", inner, "num_attention_heads times attention_head_dim")
    if "text_encoder_3" in configs:
        width = configs["text_encoder_3"]["d_model"]
        yield Expected("transformer", "joint_attention_dim", width, "text_encoder_3's d_model")
    # The CLIP encoders' embeddings are padded to T5's width.
    widths, joint = sum(clip["hidden_size"] for clip in clips), transformer["joint_attention_dim"]
    yield from in_range("transformer", "joint_attention_dim", joint, least=widths)
    if transformer["patch_size"] not in (1, 2):
        yield f"transformer/config.json: patch_size is {transformer['patch_size']}, expected 1 or 2"
    # The class computes the table of positions, 8 bytes per element, before the file's table replaces it.
    side = transformer["pos_embed_max_size"]
    if side * side * inner > _LARGEST_TABLE:
        yield f"transformer/config.json: pos_embed_max_size is {side}, too large"


def _derive(header: Header) -> dict[str, dict[str, Any]]:
    """The sizes of SD 3 medium, 3.5 medium and 3.5 large."""
    found = single_files.denoiser_of(header)
    try:
        width, (_, positions, *_) = found["context_embedder.weight"].shape[0], found["pos_embed"].shape
    except (KeyError, IndexError, ValueError):
        raise ModelFilesRefused("transformer: context_embedder.weight or pos_embed is missing") from None
    config: dict[str, Any] = {
        "num_layers": len(single_files.blocks(found, "joint_blocks")),
        "num_attention_heads": width // 64,
        "caption_projection_dim": width,
        "pos_embed_max_size": isqrt(positions),
        "dual_attention_layers": single_files.blocks(found, "joint_blocks", "x_block.attn2."),
    }
    if any(".ln_q." in name for name in found):
        config["qk_norm"] = "rms_norm"
    return {"transformer": config}


_FILE = SingleFile(
    parts={
        "text_encoder": FilePart(("text_encoders.clip_l.transformer.",), "clip_of_sd3"),
        "text_encoder_2": of_prefix("text_encoders.clip_g.transformer."),
        "text_encoder_3": of_prefix("text_encoders.t5xxl.transformer."),
        "transformer": single_files.of_transformer("sd3"),
        "vae": single_files.VAE,
    },
    is_of=lambda header: "joint_blocks.0.x_block.attn.qkv.weight" in single_files.denoiser_of(header),
    derive=_derive,
    usual_files={
        "text_encoder": "text_encoders/clip_l.safetensors of stabilityai/stable-diffusion-3-medium",
        "text_encoder_2": "text_encoders/clip_g.safetensors of stabilityai/stable-diffusion-3-medium",
    },
    tokenizers={"tokenizer": single_files.CLIP, "tokenizer_2": single_files.OPEN_CLIP, "tokenizer_3": single_files.T5},
)

FAMILIES = (
    Family(
        name="sd3",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000),
        defaults=defaults(side=1024, steps=28, cfg_scale=4.5, scheduler="flow_euler"),
        schedulers=FLOW,
        pipeline="StableDiffusion3Pipeline",
        pipelines={
            IMAGE_TO_IMAGE: "StableDiffusion3Img2ImgPipeline",
            INPAINTING: "StableDiffusion3InpaintPipeline",
        },
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
        activations=Activations(denoiser=494, text=10_000_000, vae=1536),
        sizes=_sizes,
        single_file=_FILE,
        original_names=by_table(SD3),
        control_nets=control_nets.SD3,
        max_sequence_length=256,
        adapter="sd3",
    ),
)
