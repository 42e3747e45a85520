"""FLUX.1: a transformer that takes T5's embeddings, CLIP's pooled embedding, and latents packed by four."""

from collections.abc import Iterator
from typing import Any

from weave.models import control_transformers, single_files, sizes
from weave.models.components import (
    AUTOENCODER_KL,
    BY_DIFFUSERS,
    CLIP_TEXT,
    CLIP_TOKENIZER,
    T5_ENCODER,
    T5_TOKENIZER,
    ModelClass,
)
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header
from weave.models.original_names import by_table
from weave.models.original_tables import FLUX
from weave.models.single_files import SingleFile, of_prefix
from weave.models.sizes import Configs, Expected
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, REFERENCES

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="FluxTransformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="patch_size",
        size="""in_channels out_channels? attention_head_dim num_attention_heads joint_attention_dim
            pooled_projection_dim axes_dims_rope[]""",
        count="num_layers num_single_layers",
        flag="guidance_embeds",
    ),
    defaults={
        "in_channels": 64,
        "out_channels": None,
        "patch_size": 1,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
    },
)


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    yield from sizes.packed_transformer(configs)
    pooled = configs["text_encoder"]["hidden_size"]
    yield Expected("transformer", "pooled_projection_dim", pooled, "the text encoder's hidden_size")
    width = configs["text_encoder_2"]["d_model"]
    yield Expected("transformer", "joint_attention_dim", width, "text_encoder_2's d_model")


def _is_of(header: Header) -> bool:
    """FLUX.2 and Chroma have no vector_in."""
    found = single_files.denoiser_of(header)
    return "double_blocks.0.img_attn.qkv.weight" in found and "vector_in.in_layer.weight" in found


def _derive(header: Header) -> dict[str, dict[str, Any]]:
    """Schnell takes no guidance scale, and its scheduler shifts nothing."""
    found = single_files.denoiser_of(header)
    guided = "guidance_in.in_layer.weight" in found
    transformer = {
        "num_layers": len(single_files.blocks(found, "double_blocks")),
        "num_single_layers": len(single_files.blocks(found, "single_blocks")),
        "guidance_embeds": guided,
    }
    return {"transformer": transformer, "scheduler": {} if guided else {"shift": 1.0, "use_dynamic_shifting": False}}


_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("text_encoders.clip_l.transformer."),
        "text_encoder_2": of_prefix("text_encoders.t5xxl.transformer."),
        "transformer": single_files.of_transformer("flux"),
        "vae": single_files.VAE,
    },
    is_of=_is_of,
    derive=_derive,
    usual_files={
        "text_encoder": "clip_l.safetensors of comfyanonymous/flux_text_encoders",
        "text_encoder_2": "t5xxl_fp16.safetensors of comfyanonymous/flux_text_encoders",
        "vae": "ae.safetensors of black-forest-labs/FLUX.1-schnell",
    },
    tokenizers={"tokenizer": single_files.CLIP, "tokenizer_2": single_files.T5},
    in_gguf=("transformer",),
)

FAMILIES = (
    Family(
        name="flux",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000, references=1),
        defaults=defaults(side=1024, steps=28, cfg_scale=3.5, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        caches=("first_block", "taylorseer", "magcache"),
        pipeline="FluxPipeline",
        pipelines={
            IMAGE_TO_IMAGE: "FluxImg2ImgPipeline",
            INPAINTING: "FluxInpaintPipeline",
            REFERENCES: "FluxKontextPipeline",
        },
        of_some_models=frozenset({REFERENCES}),
        components={
            "tokenizer": CLIP_TOKENIZER,
            "tokenizer_2": T5_TOKENIZER,
            "text_encoder": CLIP_TEXT,
            "text_encoder_2": T5_ENCODER,
            "transformer": _TRANSFORMER,
            "vae": AUTOENCODER_KL,
        },
        activations=Activations(denoiser=413, text=55_000_000, vae=1536),
        sizes=_sizes,
        single_file=_FILE,
        original_names=by_table(FLUX),
        control_nets=control_transformers.FLUX,
        max_sequence_length=512,
        adapter="flux",
    ),
)
