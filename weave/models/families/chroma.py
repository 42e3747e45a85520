"""Chroma: FLUX.1 without CLIP, and with classifier-free guidance."""

from collections.abc import Iterator
from typing import Any

from weave.models import single_files, sizes
from weave.models.components import AUTOENCODER_KL, BY_DIFFUSERS, T5_ENCODER, T5_TOKENIZER, ModelClass
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header
from weave.models.original_names import by_table
from weave.models.original_tables import FLUX
from weave.models.single_files import SingleFile, of_prefix
from weave.models.sizes import Configs, Expected
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="ChromaTransformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="patch_size",
        size="""in_channels out_channels? attention_head_dim num_attention_heads joint_attention_dim axes_dims_rope[]
            approximator_num_channels approximator_hidden_dim""",
        count="num_layers num_single_layers approximator_layers",
    ),
    defaults={
        "in_channels": 64,
        "out_channels": None,
        "patch_size": 1,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "axes_dims_rope": [16, 56, 56],
        "approximator_num_channels": 64,
    },
)


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    yield from sizes.packed_transformer(configs)
    width = configs["text_encoder"]["d_model"]
    yield Expected("transformer", "joint_attention_dim", width, "the text encoder's d_model")
    channels = configs["transformer"]["approximator_num_channels"]
    yield Expected("transformer", "approximator_num_channels", channels // 4 * 4, "a multiple of 4")


def _is_of(header: Header) -> bool:
    """Chroma Radiance, which has no VAE, has no img_in either."""
    return {"distilled_guidance_layer.in_proj.weight", "img_in.weight"} <= single_files.denoiser_of(header).keys()


def _derive(header: Header) -> dict[str, dict[str, Any]]:
    found = single_files.denoiser_of(header)
    layers = {
        "num_layers": "double_blocks",
        "num_single_layers": "single_blocks",
        "approximator_layers": "distilled_guidance_layer.layers",
    }
    return {"transformer": {key: len(single_files.blocks(found, name)) for key, name in layers.items()}}


_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("text_encoders.t5xxl.transformer."),
        "transformer": single_files.of_transformer("flux"),
        "vae": single_files.VAE,
    },
    is_of=_is_of,
    derive=_derive,
    usual_files={
        "text_encoder": "t5xxl_fp16.safetensors of comfyanonymous/flux_text_encoders",
        "vae": "ae.safetensors of black-forest-labs/FLUX.1-schnell",
    },
    tokenizers={"tokenizer": single_files.T5},
)

FAMILIES = (
    Family(
        name="chroma",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000),
        defaults=defaults(side=1024, steps=40, cfg_scale=3.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        pipeline="ChromaPipeline",
        pipelines={IMAGE_TO_IMAGE: "ChromaImg2ImgPipeline", INPAINTING: "ChromaInpaintPipeline"},
        components={
            "tokenizer": T5_TOKENIZER,
            "text_encoder": T5_ENCODER,
            "transformer": _TRANSFORMER,
            "vae": AUTOENCODER_KL,
        },
        activations=Activations(denoiser=437, text=49_000_000, vae=1536),
        sizes=_sizes,
        single_file=_FILE,
        original_names=by_table(FLUX),
        max_sequence_length=512,
        adapter="chroma",
    ),
)
